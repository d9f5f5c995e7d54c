//! A command's connection to a server: the one that was named, or the one on this machine, which
//! is started where there is none.

pub mod local_server;
pub mod process;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::Mutex;
use tokio::time::sleep;
use toygres_client::{Client, ClientError};
use toygres_models::{InstanceKey, InstanceName};
use url::{Host, Url};
use uuid::Uuid;

use crate::error::CliError;
use crate::output::ui::Ui;
use crate::settings::Settings;
use local_server::Found;

/// How often a request is sent again after the server on this machine was started anew.
const RESTARTS: usize = 2;
/// Between requests to a server that is away.
pub const PAUSE: Duration = Duration::from_millis(250);
/// How long a server that was named may be away while a command works with it.
pub const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// A command's connection to a server. Clones are for what goes on side by side.
#[derive(Clone)]
pub struct Session<'a> {
    /// What is set.
    pub settings: &'a Settings,
    /// Where words go.
    pub ui: &'a Ui,
    /// The connection.
    pub client: Client,
    /// Whether a server has answered on it.
    has_answered: bool,
    /// Held while the server is started again, so that of several clones only one does.
    reopening: Arc<Mutex<()>>,
}

impl<'a> Session<'a> {
    /// Finds the server, or starts one.
    pub async fn open(settings: &'a Settings, ui: &'a Ui) -> Result<Self, CliError> {
        let client = match &settings.url {
            Some(url) if is_own(settings, url).await => own_client(settings)?,
            Some(url) => client(settings, url, settings.token.as_ref())?,
            None => local(settings, ui).await?,
        };
        Ok(Self { settings, ui, client, has_answered: false, reopening: Arc::default() })
    }

    /// Whether the server is the one on this machine, which this program may start.
    pub fn is_local(&self) -> bool {
        self.settings.url.is_none()
    }

    /// The instance of this name, in the namespace that the command works in.
    pub fn key(&self, name: InstanceName) -> InstanceKey {
        InstanceKey { namespace: self.settings.namespace_or_default(), name }
    }

    /// Sends a request. If the server on this machine went away meanwhile, it is started again
    /// and the request repeated, as each of the API's may be; one elsewhere is waited for, as behind
    /// its address another replica may take over.
    pub async fn call<T>(&mut self, request: impl AsyncFn(&Client) -> Result<T, ClientError>) -> Result<T, CliError> {
        let mut restarts = 0;
        let began = Instant::now();
        loop {
            match request(&self.client).await {
                Ok(answer) => {
                    self.has_answered = true;
                    return Ok(answer);
                }
                Err(error) if is_gone(&error) && self.is_local() && restarts < RESTARTS => {
                    restarts += 1;
                    self.reopen().await?;
                }
                // The first try was cut off: its server may be gone, and holds it for a while yet.
                Err(error) if is_in_progress(&error) && began.elapsed() < RETRY_TIMEOUT => sleep(PAUSE).await,
                Err(error) if !self.is_local() && self.was_cut_off(&error) && began.elapsed() < RETRY_TIMEOUT => {
                    sleep(PAUSE).await
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// Sends a request that changes something: however often it is repeated, it is carried out once.
    pub async fn change<T>(&mut self, request: impl AsyncFn(&Client) -> Result<T, ClientError>) -> Result<T, CliError> {
        let once = Uuid::now_v7();
        self.call(async |client: &Client| request(&client.once(once)).await).await
    }

    /// Whether there was a server, and its connection broke. (An address that never answered is
    /// more likely a wrong one.)
    fn was_cut_off(&self, error: &ClientError) -> bool {
        matches!(error, ClientError::Broken { .. }) || (self.has_answered && is_gone(error))
    }

    /// Finds the server on this machine again, or starts one.
    pub async fn reopen(&mut self) -> Result<(), CliError> {
        let reopening = self.reopening.clone();
        let _one_at_a_time = reopening.lock().await;
        self.client = local(self.settings, self.ui).await?;
        Ok(())
    }

    /// Looks for the server again without starting one; `false` if none answers.
    pub async fn find_again(&mut self) -> Result<bool, CliError> {
        if self.is_local() {
            let Found::Answering(_) = local_server::find_server(self.settings).await? else { return Ok(false) };
            self.client = own_client(self.settings)?;
        }
        Ok(true)
    }

    /// A request's error, with what to do about it.
    pub fn explain(&self, error: ClientError) -> CliError {
        let (gone, slow) = (is_gone(&error), matches!(error, ClientError::TimedOut { .. }));
        let explained = CliError::from(error);
        match (self.is_local(), gone || slow) {
            (false, true) => explained
                .hint("the address comes from --url, TOYGRES_URL, the config file or the context (`toygres context list`)"),
            (true, true) => explained.hint(format!("its log: {}", self.settings.server.state().log_path().display())),
            (_, false) => explained,
        }
    }
}

/// Whether the server ended, before or during the request.
pub fn is_gone(error: &ClientError) -> bool {
    matches!(error, ClientError::Unreachable { .. } | ClientError::Broken { .. })
}

/// Whether an earlier try of the same request isn't answered yet.
fn is_in_progress(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(problem) if problem.name() == "in_progress")
}

async fn local(settings: &Settings, ui: &Ui) -> Result<Client, CliError> {
    match local_server::find(settings).await? {
        Some(server) => {
            local_server::warn_of_other_version(&server, ui);
            local_server::warn_of_flags(settings, ui);
        }
        None => {
            local_server::start(settings, ui).await?;
        }
    }
    own_client(settings)
}

/// A client of the server on this machine.
fn own_client(settings: &Settings) -> Result<Client, CliError> {
    let client = local_server::client(settings, token(settings)?.as_ref())?;
    match &settings.server.kubernetes.cluster.context {
        Some(context) => Ok(client.with_kube_context(context)?),
        None => Ok(client),
    }
}

/// A client of a server that was named, known by the CA that was set or else the system's.
///
/// # Errors
/// If others on the network could read the token, and that isn't allowed.
pub fn client(settings: &Settings, url: &Url, token: Option<&SecretString>) -> Result<Client, CliError> {
    if token.is_some() {
        expect_private_way(settings, url)?;
    }
    let ca_certificate = if url.scheme() == "https" { ca_certificate(settings)? } else { None };
    Ok(Client::trusting(url, token, ca_certificate.as_deref())?)
}

/// Fails if a token that is sent there could be read on the way, unless that is allowed.
pub fn expect_private_way(settings: &Settings, server: &Url) -> Result<(), CliError> {
    if server.scheme() == "http" && !is_this_machine(server) && !settings.allow_plaintext {
        return Err(CliError::usage(format!(
            "{server} is plain HTTP: others on the network could read the token; nothing was sent"
        ))
        .hint("give an https:// address, or --allow-plaintext where the network is trusted"));
    }
    Ok(())
}

fn is_this_machine(server: &Url) -> bool {
    match server.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The certificate of the CA that was set, or of the context's, in PEM.
pub fn ca_certificate(settings: &Settings) -> Result<Option<String>, CliError> {
    match &settings.ca_certificate {
        Some(path) => read_certificate(path).map(Some),
        None => Ok(settings.context_ca_certificate.clone()),
    }
}

/// The certificate of the CA that was set for this command. The config file's is for the config file's server.
pub fn given_ca_certificate(settings: &Settings) -> Result<Option<String>, CliError> {
    settings.given_ca_certificate().map(read_certificate).transpose()
}

fn read_certificate(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| {
        CliError::usage(format!("the CA's certificate {} can't be read: {error}", path.display()))
            .hint("it comes from --ca-certificate, TOYGRES_CA_CERTIFICATE or the config file")
    })
}

/// Whether no token was set, and the address is that of the server here. Its socket is used then: the token in the state
/// directory has every right there, and a port may be anybody's.
async fn is_own(settings: &Settings, url: &Url) -> bool {
    if settings.token.is_some() {
        return false;
    }
    match local_server::find_server(settings).await {
        Ok(Found::Answering(server)) => server.url.parse::<Url>().is_ok_and(|own| own == *url),
        _ => false,
    }
}

/// The token that was set, or the one in the state directory.
pub fn token(settings: &Settings) -> Result<Option<SecretString>, CliError> {
    match &settings.token {
        Some(token) => Ok(Some(token.clone())),
        None => settings
            .server
            .state()
            .token()
            .map_err(|error| local_server::unreadable(&settings.server.state().token_path(), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_told_a_token_in_the_clear() {
        for (server, here) in [
            ("http://127.0.0.1:1/", true),
            ("http://[::1]/", true),
            ("http://localhost/", true),
            ("http://10.0.0.1/", false),
            ("http://localhost.example.org/", false),
        ] {
            assert_eq!(is_this_machine(&server.parse().unwrap()), here, "{server}");
        }
    }
}
