//! A command's connection to a server: the one that was named, or the one on this machine, which
//! is started where there is none.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::time::sleep;
use toygres_models::{InstanceKey, InstanceName};

use super::error::CliError;
use super::local_server;
use super::ui::Ui;
use crate::client::{Client, ClientError};
use crate::settings::Settings;

/// How often a request is sent again after the server on this machine was started anew.
const RESTARTS: usize = 2;
/// Between requests to a server that is away.
pub const PAUSE: Duration = Duration::from_millis(250);
/// How long a server that was named may be away while a command works with it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A command's connection to a server.
pub struct Session<'a> {
    /// What is set.
    pub settings: &'a Settings,
    /// Where words go.
    pub ui: &'a Ui,
    /// The connection.
    pub client: Client,
    /// Whether a server has answered on it.
    has_answered: bool,
}

impl<'a> Session<'a> {
    /// Finds the server, or starts one.
    pub async fn open(settings: &'a Settings, ui: &'a Ui) -> Result<Self, CliError> {
        let client = match &settings.url {
            Some(url) => Client::new(url, token(settings)?.as_ref())?,
            None => local(settings, ui).await?,
        };
        Ok(Self { settings, ui, client, has_answered: false })
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
                Err(error) if !self.is_local() && self.was_cut_off(&error) && began.elapsed() < PATIENCE => sleep(PAUSE).await,
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// Whether there was a server, and its connection broke. (An address that never answered is
    /// more likely a wrong one.)
    fn was_cut_off(&self, error: &ClientError) -> bool {
        matches!(error, ClientError::Broken { .. }) || (self.has_answered && is_gone(error))
    }

    /// Finds the server on this machine again, or starts one.
    pub async fn reopen(&mut self) -> Result<(), CliError> {
        self.client = local(self.settings, self.ui).await?;
        Ok(())
    }

    /// A request's error, with what to do about it.
    pub fn explain(&self, error: ClientError) -> CliError {
        let (gone, slow) = (is_gone(&error), matches!(error, ClientError::TimedOut { .. }));
        let explained = CliError::from(error);
        match (self.is_local(), gone || slow) {
            (false, true) => explained.hint("the address comes from --url, TOYGRES_URL or the config file"),
            (true, true) => explained.hint(format!("its log: {}", self.settings.state().log_path().display())),
            (_, false) => explained,
        }
    }
}

/// Whether the server ended, before or during the request.
pub fn is_gone(error: &ClientError) -> bool {
    matches!(error, ClientError::Unreachable { .. } | ClientError::Broken { .. })
}

async fn local(settings: &Settings, ui: &Ui) -> Result<Client, CliError> {
    let url = match local_server::find(settings).await? {
        Some(server) => {
            local_server::warn_of_other_version(&server, ui);
            server.url
        }
        None => local_server::start(settings, ui).await?,
    };
    let client = Client::new(&local_server::parse_url(&url)?, token(settings)?.as_ref())?;
    match &settings.kubernetes.cluster.context {
        Some(context) => Ok(client.with_kube_context(context)?),
        None => Ok(client),
    }
}

/// The token that was set, or the one in the state directory.
pub fn token(settings: &Settings) -> Result<Option<SecretString>, CliError> {
    match &settings.token {
        Some(token) => Ok(Some(token.clone())),
        None => settings.state().token().map_err(|error| local_server::unreadable(&settings.state().token_path(), &error)),
    }
}
