//! TLS as the web configuration asks for it.

use std::{net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context as _, bail, ensure};
use tokio_rustls::rustls::{
    DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::{TLS12, TLS13},
};
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::config::{ClientAuth, TlsSettings};

/// The file's names of versions.
const VERSIONS: [(&str, Option<&SupportedProtocolVersion>); 4] =
    [("TLS10", None), ("TLS11", None), ("TLS12", Some(&TLS12)), ("TLS13", Some(&TLS13))];

/// What speaks TLS by these settings. `read` gets the contents of a file.
pub(super) fn server(
    settings: &TlsSettings,
    read: &mut dyn FnMut(&Path) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let mut pem = |name: &str, text: &Option<String>, file: &Option<std::path::PathBuf>| match (text, file) {
        (Some(_), Some(_)) => bail!("{name} and {name}_file are both set, and one is needed"),
        (Some(text), None) => Ok(Some((name.to_owned(), text.clone().into_bytes()))),
        (None, Some(file)) => {
            let name = format!("{name}_file");
            let bytes = read(file).with_context(|| name.clone())?;
            Ok(Some((name, bytes)))
        }
        (None, None) => Ok(None),
    };
    let cert = pem("cert", &settings.cert, &settings.cert_file)?;
    let key = pem("key", &settings.key, &settings.key_file)?;
    let client_ca = pem("client_ca", &settings.client_ca, &settings.client_ca_file)?;
    let (name, cert) = cert.context("cert_file: missing; TLS needs a certificate, here or as cert")?;
    let chain = certificates(&cert).context(name)?;
    let (name, key) =
        key.context("key_file: missing; TLS needs the certificate's private key, here or as key")?;
    let key =
        PrivateKeyDer::from_pem_slice(&key).with_context(|| format!("{name}: no private key in PEM"))?;

    let provider = Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(&settings.cipher_suites)?,
        kx_groups: curves(&settings.curve_preferences)?,
        ..ring::default_provider()
    });
    let verifier = verifier(settings, client_ca, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(settings)?)
        .context("cipher_suites: none of them is of a version from min_version to max_version")?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, key).context("the certificate and the key are no pair")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = settings.prefer_server_cipher_suites.unwrap_or(true);
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().context("no PEM")?;
    ensure!(!all.is_empty(), "no certificate in PEM");
    Ok(all)
}

fn versions(settings: &TlsSettings) -> anyhow::Result<Vec<&'static SupportedProtocolVersion>> {
    let place = |key: &str, name: &Option<String>, default: &str| {
        let name = name.as_deref().unwrap_or(default);
        let at = VERSIONS.iter().position(|(known, _)| *known == name);
        match at {
            Some(at) if VERSIONS[at].1.is_some() => Ok(at),
            Some(_) => bail!("{key}: {name} is not safe and not spoken; TLS12 and TLS13 are"),
            None => bail!("{key}: '{name}' is no version; TLS12 and TLS13 are"),
        }
    };
    let from = place("min_version", &settings.min_version, "TLS12")?;
    let to = place("max_version", &settings.max_version, "TLS13")?;
    ensure!(from <= to, "max_version: it is below min_version");
    Ok(VERSIONS[from..=to].iter().filter_map(|(_, version)| *version).collect())
}

/// Those of TLS 1.3 cannot be chosen, as in Go.
fn cipher_suites(wanted: &[String]) -> anyhow::Result<Vec<SupportedCipherSuite>> {
    let all = ring::ALL_CIPHER_SUITES;
    if wanted.is_empty() {
        return Ok(all.to_vec());
    }
    let name =
        |suite: &SupportedCipherSuite| suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_");
    let mut suites: Vec<_> = all.iter().copied().filter(|suite| suite.tls13().is_some()).collect();
    for wanted in wanted {
        let Some(suite) = all.iter().find(|suite| name(suite) == *wanted) else {
            let names: Vec<_> = all.iter().map(name).collect();
            bail!("cipher_suites: there is no {wanted} here; there are {}", names.join(", "));
        };
        if suite.tls13().is_none() {
            suites.push(*suite);
        }
    }
    Ok(suites)
}

fn curves(
    wanted: &[String],
) -> anyhow::Result<Vec<&'static dyn tokio_rustls::rustls::crypto::SupportedKxGroup>> {
    use ring::kx_group::{SECP256R1, SECP384R1, X25519};
    if wanted.is_empty() {
        return Ok(ring::ALL_KX_GROUPS.to_vec());
    }
    let curve = |name: &String| match name.as_str() {
        "X25519" => Ok(X25519),
        "CurveP256" => Ok(SECP256R1),
        "CurveP384" => Ok(SECP384R1),
        _ => bail!("curve_preferences: there is no {name} here; there are X25519, CurveP256, CurveP384"),
    };
    wanted.iter().map(curve).collect()
}

/// What is asked of clients' certificates, if anything.
fn verifier(
    settings: &TlsSettings,
    client_ca: Option<(String, Vec<u8>)>,
    provider: &Arc<CryptoProvider>,
) -> anyhow::Result<Option<Arc<dyn ClientCertVerifier>>> {
    let asked = settings.client_auth_type;
    let any = |mandatory| Arc::new(Anybody { mandatory, provider: Arc::clone(provider) });
    let trusting = |client_ca: Option<(String, Vec<u8>)>| {
        let (name, pem) = client_ca
            .with_context(|| format!("client_ca_file: missing; client_auth_type {asked:?} needs it"))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&pem).with_context(|| name.clone())? {
            roots.add(certificate).with_context(|| name.clone())?;
        }
        anyhow::Ok(WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider)))
    };
    let verifier: Arc<dyn ClientCertVerifier> = match asked {
        ClientAuth::NoClientCert => {
            ensure!(
                client_ca.is_none() && settings.client_allowed_sans.is_empty(),
                "client_auth_type: missing; client_ca and client_allowed_sans do nothing without it"
            );
            return Ok(None);
        }
        ClientAuth::RequestClientCert => any(false),
        ClientAuth::RequireAnyClientCert => any(true),
        ClientAuth::VerifyClientCertIfGiven => trusting(client_ca)?.allow_unauthenticated().build()?,
        ClientAuth::RequireAndVerifyClientCert => trusting(client_ca)?.build()?,
    };
    let allowed = settings.client_allowed_sans.clone();
    Ok(Some(if allowed.is_empty() { verifier } else { Arc::new(Named { verifier, allowed }) }))
}

/// Asks for a certificate and takes anybody's, if it is his own.
#[derive(Debug)]
struct Anybody {
    mandatory: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Asks of a certificate that it has one of these names, too.
#[derive(Debug)]
struct Named {
    verifier: Arc<dyn ClientCertVerifier>,
    allowed: Vec<String>,
}

impl ClientCertVerifier for Named {
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(cert, intermediates, now)?;
        let names = names(cert).map_err(|error| Error::Other(OtherError(Arc::new(error))))?;
        if names.iter().any(|name| self.allowed.contains(name)) {
            return Ok(verified);
        }
        Err(Error::General(format!(
            "none of the certificate's names is in client_allowed_sans: {}",
            names.join(", ")
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// A certificate's alternative names, as they are written in a configuration.
pub(super) fn names(cert: &CertificateDer<'_>) -> Result<Vec<String>, x509_cert::der::Error> {
    let cert = Certificate::from_der(cert)?;
    let Some((_, SubjectAltName(names))) = cert.tbs_certificate().get_extension::<SubjectAltName>()? else {
        return Ok(Vec::new());
    };
    let text = |name: GeneralName| match name {
        GeneralName::DnsName(name)
        | GeneralName::Rfc822Name(name)
        | GeneralName::UniformResourceIdentifier(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => address(bytes.as_bytes()).map(|address| address.to_string()),
        _ => None,
    };
    Ok(names.into_iter().filter_map(text).collect())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}
