//! Probes and hooks by HTTP, plain or over TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{connect, port, target};

/// GET, for a probe or a hook: well is what answers with success or a redirect.
pub(crate) async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    address: IpAddr,
) -> Result<(), String> {
    let target = target(get.host.as_ref(), address, port(container, &get.port)?)?;
    let mut host = target.to_string();
    let mut headers = String::new();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            headers.push_str(&format!("{}: {}\r\n", header.name, header.value));
        }
    }
    let path = get.path.as_deref().unwrap_or("/");
    let request = format!(
        "GET {}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: portolan-probe\r\nAccept: */*\r\n{headers}Connection: close\r\n\r\n",
        if path.starts_with('/') { "" } else { "/" },
    );
    let stream = connect(target).await?;
    if get.scheme.as_deref() != Some("HTTPS") {
        return talk(stream, target, &request).await;
    }
    let name = name(&host, target);
    let connector = TlsConnector::from(trusting()?);
    let stream =
        connector.connect(name, stream).await.map_err(|error| format!("TLS with {target}: {error}"))?;
    talk(stream, target, &request).await
}

/// Whom the server is to take us to mean: the name in the Host header, else its address.
fn name(host: &str, target: SocketAddr) -> ServerName<'static> {
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    ServerName::try_from(name.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(target.ip().into()))
}

/// Sends a request and judges the first line of the answer.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    target: SocketAddr,
    request: &str,
) -> Result<(), String> {
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("{target}: {error}"))?;
    let mut head = Vec::new();
    while head.len() < 4096 && !head.contains(&b'\n') {
        match stream.read_buf(&mut head).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(format!("{target}: {error}")),
        }
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    match line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("{target} doesn't speak HTTP: {line:?}")),
    }
}

/// Takes any certificate, as a kubelet does: who is probed is known by address, and a container's certificate is its own affair.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client set-up that takes any certificate; made once.
fn trusting() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}
