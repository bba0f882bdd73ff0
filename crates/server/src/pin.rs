//! TLS towards somebody known by the hash of a certificate instead of by a name.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::auth::fingerprint;

/// How long somebody may take to show a certificate.
const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts a server whose own certificate has this SHA-256, whatever its names and dates; with `None`, any (only to look
/// at the chain). The handshake's signature is checked in both cases: the other side holds the key.
#[derive(Debug)]
struct Pinned {
    sha256: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.sha256 {
            Some(pin) if pin != fingerprint(end_entity) => {
                Err(rustls::Error::General("the certificate isn't the one that was announced".into()))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A client set-up that trusts the one certificate with this hash.
pub(crate) fn client(sha256: Option<[u8; 32]>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { sha256, provider: provider.clone() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The certificates that a server shows at `host:port`.
pub(crate) async fn fetch_chain(address: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let connector = tokio_rustls::TlsConnector::from(client(None)?);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no host name"))?;
    let connect = async {
        let stream = tokio::net::TcpStream::connect(address).await;
        let stream = stream.with_context(|| format!("connecting to {address}"))?;
        connector.connect(name, stream).await.with_context(|| format!("TLS with {address}"))
    };
    // Somebody who takes connections and says nothing is no server of ours.
    let tls = tokio::time::timeout(PATIENCE, connect)
        .await
        .map_err(|_| anyhow::anyhow!("{address} does not speak TLS within {PATIENCE:?}"))??;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
}
