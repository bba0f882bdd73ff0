//! The cluster's own certificate authority and its tokens: files in a directory that only the server reads.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::auth::{fingerprint, hex};
use crate::certificate::Asking;

/// Years that the authority's certificate is valid: longer than any cluster here lives, so nothing has to rotate it.
const CA_YEARS: i16 = 10;
/// Days that a serving certificate is valid. It is made anew at each start; the bound is that of public CAs (398 days),
/// which some TLS clients enforce on any certificate.
const SERVING_DAYS: i64 = 397;
/// Days that a node's certificate is valid. A node asks for a new one at each start, and when most of the time is over.
const NODE_DAYS: i64 = 365;

/// A certificate authority whose key lies in the data directory.
pub struct Authority {
    dir: PathBuf,
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority of this directory, or makes it: `ca.crt`, and `ca.key` with mode 0600.
    pub fn open(dir: &Path) -> anyhow::Result<Authority> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let (crt, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !crt.exists() {
            let pair = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            // Two clusters' authorities get different names, lest a client that trusts both picks by name and fails.
            let id = hex(&fingerprint(pair.public_key_raw())[..4]);
            params.distinguished_name.push(DnType::CommonName, format!("portolan-ca-{id}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
            set_validity(&mut params, today, today.saturating_add(jiff::Span::new().years(CA_YEARS)))?;
            let certificate = params.self_signed(&pair)?;
            // The key first: a certificate without a key would look complete after a crash.
            write_secret(&key, pair.serialize_pem().as_bytes())?;
            write_atomically(&crt, certificate.pem().as_bytes(), 0o644)?;
        }
        let pem = std::fs::read_to_string(&crt).with_context(|| format!("reading {}", crt.display()))?;
        let key_pem = std::fs::read_to_string(&key).with_context(|| format!("reading {}", key.display()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .with_context(|| format!("{} is no certificate", crt.display()))?;
        let pair =
            KeyPair::from_pem(&key_pem).with_context(|| format!("{} is no private key", key.display()))?;
        let issuer = Issuer::from_ca_cert_der(&der, pair)?;
        Ok(Authority { dir: dir.to_owned(), pem, der, issuer })
    }

    /// The authority's certificate, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate, as DER.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate's DER, in hexadecimal: what a node pins.
    pub fn fingerprint(&self) -> String {
        hex(&fingerprint(&self.der))
    }

    /// A fresh certificate for these names (host names or IP addresses), and the TLS set-up that serves it. The chain
    /// that is sent includes the authority, so that a node can find it by the hash in its token.
    pub fn serving(&self, names: &[String]) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        let common = names.first().map_or("portolan", String::as_str);
        params.distinguished_name.push(DnType::CommonName, common);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
        set_validity(&mut params, today, today.saturating_add(jiff::Span::new().days(SERVING_DAYS)))?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.der.clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Asking::new(&self.der)?))
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A node's certificate for the key that signed this request (PEM): the user `system:node:NAME` in the group of nodes.
    /// Of the request only the key counts: what it says of names is not asked for.
    pub fn node_certificate(&self, name: &str, request: &str) -> anyhow::Result<String> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let identity = crate::auth::Identity::node(name);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, identity.user);
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
        set_validity(&mut params, today, today.saturating_add(jiff::Span::new().days(NODE_DAYS)))?;
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// The key that signs service accounts' tokens, in PKCS #8; made when it isn't there (`service-account.key`).
    pub fn signing_key(&self) -> anyhow::Result<Vec<u8>> {
        let path = self.dir.join("service-account.key");
        if !path.exists() {
            write_secret(&path, KeyPair::generate()?.serialize_pem().as_bytes())?;
        }
        let pem = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let pair =
            KeyPair::from_pem(&pem).with_context(|| format!("{} is no private key", path.display()))?;
        Ok(pair.serialize_der())
    }

    /// The secret of this name, 256 random bits in hexadecimal; made when it isn't there, kept with mode 0600.
    pub fn secret(&self, name: &str) -> anyhow::Result<String> {
        let path = self.dir.join(format!("{name}.token"));
        match std::fs::read_to_string(&path) {
            Ok(secret) => Ok(secret.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secret = random_secret()?;
                write_secret(&path, secret.as_bytes())?;
                Ok(secret)
            }
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The administrator's bearer token.
    pub fn admin_token(&self) -> anyhow::Result<String> {
        self.secret("admin")
    }

    /// The token that a node joins with: a secret, a dot, and the hash of the authority that the node shall trust.
    pub fn node_token(&self) -> anyhow::Result<String> {
        Ok(format!("{}.{}", self.secret("node")?, self.fingerprint()))
    }
}

/// A node's token, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeToken {
    /// The whole token: what stands behind `Authorization: Bearer`.
    pub bearer: String,
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
}

impl std::str::FromStr for NodeToken {
    type Err = anyhow::Error;

    fn from_str(token: &str) -> anyhow::Result<NodeToken> {
        let token = token.trim();
        let expected = "a node token is <secret>.<sha256 of the server's CA certificate in hexadecimal>";
        let (_, hash) = token.rsplit_once('.').context(expected)?;
        let authority = crate::auth::unhex(hash).context(expected)?;
        Ok(NodeToken { bearer: token.to_owned(), authority })
    }
}

/// A fresh key and a request for a certificate for it, both PEM. What the certificate will say is for its signer to decide.
pub fn certificate_request() -> anyhow::Result<(String, String)> {
    let pair = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&pair)?;
    Ok((pair.serialize_pem(), request.pem()?))
}

/// Fetches the authority's certificate from a server: the one of its TLS chain that has this hash. The connection is
/// used for nothing else; what comes later trusts this certificate and no other.
pub async fn fetch_authority(address: &str, sha256: &[u8; 32]) -> anyhow::Result<CertificateDer<'static>> {
    let chain = crate::pin::fetch_chain(address).await?;
    chain.into_iter().find(|certificate| fingerprint(certificate) == *sha256).with_context(|| {
        format!("no certificate that {address} shows has the hash in the token: wrong server, or wrong token")
    })
}

/// 256 random bits in hexadecimal.
pub fn random_secret() -> anyhow::Result<String> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("no randomness to be had"))?;
    Ok(hex(&bytes))
}

/// The names that every serving certificate of a cluster carries, besides the addresses it is reached at.
pub fn usual_names(addresses: &[IpAddr]) -> Vec<String> {
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let names = names.iter().map(|name| (*name).to_owned());
    names
        .chain(["kubernetes.default.svc.cluster.local".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])
        .chain(addresses.iter().map(IpAddr::to_string))
        .collect()
}

fn set_validity(
    params: &mut CertificateParams,
    today: jiff::civil::Date,
    end: jiff::civil::Date,
) -> anyhow::Result<()> {
    // From yesterday on: a clock that lags a little, or a time zone taken for UTC, shall not refuse it.
    let start = today.yesterday()?;
    let day = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8)
    };
    params.not_before = day(start);
    params.not_after = day(end);
    Ok(())
}

fn write_secret(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    write_atomically(path, content, 0o600)
}

/// Writes beside the file and renames: a reader sees the old content or the new one, never half.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let context = || format!("writing {}", path.display());
    let name = path.file_name().with_context(context)?.to_string_lossy().into_owned();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    // Left over from a process with our id that died here.
    let _ = std::fs::remove_file(&beside);
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        // The name has to outlive a power loss too: an authority made anew would be a stranger to every client.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(dir)?.sync_all()
    };
    write()
        .inspect_err(|_| {
            // Half a secret on a full disk is of no use to anybody.
            let _ = std::fs::remove_file(&beside);
        })
        .with_context(context)
}
