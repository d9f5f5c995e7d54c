//! The API's TLS: with a certificate that was given, or one of toygres's own CA.
//!
//! Programs on this machine always meet a certificate of the own CA, whose certificate is in the state
//! directory: a given one holds names that others use, and may be signed by anybody.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum_server::accept::Accept;
use axum_server::tls_openssl::{OpenSSLAcceptor, OpenSSLConfig};
use futures::FutureExt;
use futures::future::BoxFuture;
use openssl::asn1::Asn1Time;
use openssl::pkey::PKey;
use openssl::ssl::{NameType, SniError, SslAcceptor, SslAcceptorBuilder, SslMethod};
use openssl::x509::X509;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use toygres_activities::platform::certificates::CertificateAuthority;
use toygres_client::resources::PROBLEM_CONTENT_TYPE;
use tracing::{error, info};

use crate::settings::TlsSettings;

/// How often the files of a given certificate are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How old a certificate of the own CA gets. It is valid for a year.
const OWN_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a client may say nothing before its TLS begins.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(10);
/// How much of a request in the clear is read.
const MAX_READ_BYTES: u64 = 64 * 1024;
/// The answer to it: a problem document as the API's.
const NEEDS_TLS: &str = r#"{"type":"urn:toygres:problem:needs_tls","title":"needs tls","status":400,"detail":"this server speaks TLS: send the request to https:// instead of http://, with a new token if the network isn't trusted, as this one has travelled in the clear"}"#;

/// The certificates that are in use, and how they are kept current.
pub struct Tls {
    ca: Arc<CertificateAuthority>,
    names: Vec<String>,
    own: OpenSSLConfig,
    given: Option<Given>,
}

/// A certificate from files.
struct Given {
    certificate: PathBuf,
    key: PathBuf,
    /// What was read last: the files' contents, whether they could be used or not.
    seen: Pair,
    config: OpenSSLConfig,
}

/// A chain and its key, in PEM.
#[derive(PartialEq, Eq)]
struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
}

/// Finds what is wrong with a given certificate before anything is started.
///
/// # Errors
/// As [`Tls::open`].
pub fn check(settings: Option<&TlsSettings>) -> anyhow::Result<()> {
    if let Some(TlsSettings::Given { certificate, key }) = settings {
        Pair::read(certificate, key)?.acceptor()?;
    }
    Ok(())
}

impl Tls {
    /// Reads or makes the certificate for a server that listens on `listen`.
    ///
    /// # Errors
    /// Says which file can't be used, and why; never what is in it.
    pub fn open(settings: &TlsSettings, ca: Arc<CertificateAuthority>, listen: SocketAddr) -> anyhow::Result<Self> {
        let given = match settings {
            TlsSettings::Given { certificate, key } => {
                let seen = Pair::read(certificate, key)?;
                let config = OpenSSLConfig::from_acceptor(Arc::new(seen.acceptor()?.build()));
                Some(Given { certificate: certificate.clone(), key: key.clone(), seen, config })
            }
            TlsSettings::Own { .. } => None,
        };
        let names = match settings {
            TlsSettings::Own { names } => own_names(listen.ip(), names),
            TlsSettings::Given { .. } => own_names(listen.ip(), &[]),
        };
        let own = own_acceptor(&ca, &names, given.as_ref().map(|given| given.config.clone()))?;
        Ok(Self { ca, names, own: OpenSSLConfig::from_acceptor(Arc::new(own)), given })
    }

    /// What connections are accepted with.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        let others = self.given.as_ref().map_or(&self.own, |given| &given.config);
        TlsAcceptor { here: OpenSSLAcceptor::new(self.own.clone()), others: OpenSSLAcceptor::new(others.clone()) }
    }

    /// Loads files that have changed, and makes the own certificate anew before it ends. New
    /// connections get what is current.
    pub async fn keep_current(mut self) {
        let mut made = Instant::now();
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if let Some(given) = &mut self.given
                && let Err(problem) = given.reload_if_changed()
            {
                error!(problem = format!("{problem:#}"), "the API's certificate was not loaded; the old one stays in use");
            }
            if made.elapsed() > OWN_AGE {
                match own_acceptor(&self.ca, &self.names, self.given.as_ref().map(|given| given.config.clone())) {
                    Ok(own) => self.own.reload_from_acceptor(Arc::new(own)),
                    Err(problem) => error!(problem = format!("{problem:#}"), "the API's certificate could not be made anew"),
                }
                made = Instant::now();
            }
        }
    }
}

impl Given {
    /// Loads the files if they have changed. Both are looked at, so a pair that is just being
    /// replaced is refused, and loaded at the next check.
    fn reload_if_changed(&mut self) -> anyhow::Result<()> {
        let pair = Pair::read(&self.certificate, &self.key)?;
        if pair == self.seen {
            return Ok(());
        }
        let acceptor = pair.acceptor();
        // Told once, not at each look.
        self.seen = pair;
        self.config.reload_from_acceptor(Arc::new(acceptor?.build()));
        info!(certificate = %self.certificate.display(), "the API's certificate has changed and is in use");
        Ok(())
    }
}

impl Pair {
    fn read(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let unreadable = |path: &Path| format!("{} can't be read", path.display());
        let chain = std::fs::read(certificate).with_context(|| unreadable(certificate))?;
        // Group-readable is how Kubernetes mounts a Secret.
        let mode = std::fs::metadata(key).with_context(|| unreadable(key))?.permissions().mode();
        ensure!(mode & 0o007 == 0, "{} can be read by everybody on this machine; `chmod 600` it", key.display());
        Ok(Self { chain, key: std::fs::read(key).with_context(|| unreadable(key))? })
    }

    /// What a server with this certificate accepts with: TLS 1.2 and 1.3, HTTP/1 only.
    fn acceptor(&self) -> anyhow::Result<SslAcceptorBuilder> {
        let mut chain = X509::stack_from_pem(&self.chain).context("the certificate's file is not PEM")?.into_iter();
        let Some(leaf) = chain.next() else { bail!("the certificate's file holds no certificate in PEM") };
        // The parser's own words could show a part of the key.
        let Ok(key) = PKey::private_key_from_pem(&self.key) else { bail!("the key's file holds no private key in PEM") };
        ensure!(leaf.public_key()?.public_eq(&key), "the key is not that of the certificate");
        ensure!(leaf.not_after() > Asn1Time::days_from_now(0)?, "the certificate has ended, on {}", leaf.not_after());
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
        builder.set_certificate(&leaf)?;
        for issuer in chain {
            builder.add_extra_chain_cert(issuer)?;
        }
        builder.set_private_key(&key)?;
        Ok(builder)
    }
}

/// With a new certificate of the own CA; a client that names another server than this machine itself
/// gets the given one.
fn own_acceptor(ca: &CertificateAuthority, names: &[String], given: Option<OpenSSLConfig>) -> anyhow::Result<SslAcceptor> {
    let issued = ca.issue(names.iter().map(String::as_str)).map_err(anyhow::Error::new).context("no certificate for the API")?;
    let pair = Pair { chain: issued.chain_pem.into_bytes(), key: issued.key_pem.into_bytes() };
    let mut builder = pair.acceptor()?;
    if let Some(given) = given {
        builder.set_servername_callback(move |ssl, _| {
            if ssl.servername(NameType::HOST_NAME).is_some_and(|name| name != "localhost") {
                ssl.set_ssl_context(given.get_inner().context()).map_err(|_| SniError::ALERT_FATAL)?;
            }
            Ok(())
        });
    }
    Ok(builder.build())
}

/// The names that a server is reached by as far as it knows them, and those that it was told.
fn own_names(listen: IpAddr, told: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    names.extend([host].into_iter().filter(|host| crate::settings::is_server_name(host)));
    names.extend(told.iter().cloned());
    names.sort_unstable();
    names.dedup();
    names
}

/// Accepts connections over TLS.
#[derive(Clone)]
pub struct TlsAcceptor {
    /// From this machine.
    here: OpenSSLAcceptor,
    /// From elsewhere.
    others: OpenSSLAcceptor,
}

impl<S: Send + 'static> Accept<TcpStream, S> for TlsAcceptor {
    type Stream = <OpenSSLAcceptor as Accept<TcpStream, S>>::Stream;
    type Service = <OpenSSLAcceptor as Accept<TcpStream, S>>::Service;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let is_here = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
        let acceptor = if is_here { self.here.clone() } else { self.others.clone() };
        async move {
            let mut first = [0];
            timeout(FIRST_BYTE_LIMIT, stream.peek(&mut first)).await??;
            // A request's method; a TLS record begins with a control character.
            if first[0].is_ascii_uppercase() {
                refuse_plain(stream).await?;
                return Err(io::Error::other("plain HTTP"));
            }
            acceptor.accept(stream, service).await
        }
        .boxed()
    }
}

/// Tells who sent a request in the clear what to do. It is read, since with bytes left unread the
/// connection would be reset, and the answer lost.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_CONTENT_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        NEEDS_TLS.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(NEEDS_TLS.as_bytes()).await?;
    stream.shutdown().await?;
    timeout(FIRST_BYTE_LIMIT, tokio::io::copy(&mut stream.take(MAX_READ_BYTES), &mut tokio::io::sink())).await??;
    Ok(())
}
