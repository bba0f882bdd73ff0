//! Who asks by certificate: client certificates of the cluster's authority, and certificates made for nodes.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body::Body;
use jiff::Timestamp;
use portolan_api::Status;
use rustls::DistinguishedName;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::attributes::forbidden;
use crate::auth::{Identity, bearer, fingerprint, hex};
use crate::body::StreamError;
use crate::http::{Answer, json as respond, whole};
use crate::nodes::node_of;
use crate::server::Server;

/// Where a certificate's subject may carry a user's UID (Kubernetes' `oid` for it).
const UID: &str = "1.3.6.1.4.1.57683.2";

/// Who sent a request, as far as its connection tells.
#[derive(Clone)]
pub(crate) enum Peer {
    /// A part of this process.
    InProcess(Identity),
    /// Who holds the key of a certificate that is good until this second.
    Certified(Arc<(Identity, i64)>),
    /// Who holds the key of a certificate that is not good here.
    Doubtful,
    /// Who shows no certificate.
    Unknown,
}

/// Asks for a certificate in the handshake and takes any whose key is proved: one that is not good is answered with 401,
/// as kube-apiserver does, not with a broken handshake. Requests go without certificate, too.
#[derive(Debug)]
pub(crate) struct Asking(Arc<dyn ClientCertVerifier>);

impl Asking {
    pub(crate) fn new(authority: &CertificateDer<'static>) -> anyhow::Result<Asking> {
        Ok(Asking(verifier(authority)?))
    }
}

/// Believes certificates of this authority that are meant for clients.
fn verifier(authority: &CertificateDer<'static>) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Who a chain of certificates stands for, and until when; `Ok(None)` for a certificate without a name.
fn identify(
    authority: &CertificateDer<'static>,
    chain: &[CertificateDer<'_>],
) -> anyhow::Result<Option<(Identity, i64)>> {
    let Some((first, rest)) = chain.split_first() else { return Ok(None) };
    verifier(authority)?.verify_client_cert(first, rest, UnixTime::now())?;
    let (_, certificate) = X509Certificate::from_der(first)?;
    let subject = certificate.subject();
    let texts = |attributes: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attributes.filter_map(|attribute| attribute.as_str().ok()).map(str::to_owned).collect::<Vec<_>>()
    };
    let Some(user) = texts(&mut subject.iter_common_name()).pop().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let uid =
        texts(&mut subject.iter_attributes().filter(|attribute| attribute.attr_type().to_id_string() == UID));
    let id = format!("X509SHA256={}", hex(&fingerprint(first)));
    let identity = Identity {
        user,
        uid: uid.into_iter().next().unwrap_or_default(),
        groups: texts(&mut subject.iter_organization()),
        extra: [("authentication.kubernetes.io/credential-id".to_owned(), vec![id])].into(),
    };
    Ok(Some((identity.authenticated(), certificate.validity().not_after.timestamp())))
}

impl Server {
    /// Who is at the other end of a connection that showed this chain.
    pub(crate) fn peer(&self, chain: &[CertificateDer<'_>]) -> Peer {
        let Some(authority) = self.config.client_authority.as_ref().filter(|_| !chain.is_empty()) else {
            return Peer::Unknown;
        };
        match identify(authority, chain) {
            Ok(Some(known)) => Peer::Certified(Arc::new(known)),
            Ok(None) => Peer::Unknown,
            Err(error) => {
                tracing::debug!(%error, "a client's certificate");
                Peer::Doubtful
            }
        }
    }

    /// Who sends a request: by certificate, else by token; anonymous who shows neither. Who shows something that is not
    /// good, and nothing that is, is nobody.
    pub(crate) async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Identity, Status> {
        let mut doubtful = match peer {
            Peer::InProcess(identity) => return Ok(identity.clone()),
            Peer::Certified(known) if known.1 >= Timestamp::now().as_second() => return Ok(known.0.clone()),
            Peer::Certified(_) | Peer::Doubtful => true,
            Peer::Unknown => false,
        };
        if let Some(token) = bearer(headers) {
            match self.prove(&token, self.accounts.audiences()).await {
                Ok((identity, _)) => return Ok(identity),
                Err(why) => {
                    tracing::debug!(why, "a bearer token");
                    doubtful = true;
                }
            }
        }
        if doubtful { Err(Status::unauthorized()) } else { Ok(Identity::anonymous()) }
    }

    /// POST of a node's name and certificate request: its certificate. Who may ask at all, roles say; a node that has one
    /// may only renew its own.
    pub(crate) async fn node_certificate<B>(&self, user: &Identity, method: &Method, body: B) -> Answer
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<StreamError>,
    {
        if *method != Method::POST {
            return Err(Status::method_not_supported());
        }
        let Some(authority) = &self.config.node_authority else { return Err(Status::no_such_path()) };
        let body: Value = serde_json::from_slice(&whole(body).await?)
            .map_err(|error| Status::bad_request(format!("the body is not valid JSON: {error}")))?;
        let text = |field: &str| body[field].as_str().unwrap_or_default();
        let (name, request) = (text("name"), text("request"));
        if !portolan_api::meta::subdomain_faults(name).is_empty() {
            return Err(Status::bad_request("name: must be the name of a node, a DNS subdomain"));
        }
        if let Some(own) = node_of(user).filter(|own| *own != name) {
            let why = format!("node {own} can only renew its own certificate");
            return Err(forbidden("", "nodes", name, &why));
        }
        let certificate = authority
            .node_certificate(name, request)
            .map_err(|error| Status::bad_request(format!("request: {error:#}")))?;
        tracing::info!(user = user.user, node = name, "made a node's certificate");
        Ok(respond(StatusCode::CREATED, &json!({"certificate": certificate})))
    }
}
