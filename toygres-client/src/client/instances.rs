//! Instances made, or made to be, what a document says.

use hyper::header::{HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, StatusCode};
use toygres_models::InstanceKey;
use toygres_models::store::{Instance, Operation};

use super::{Client, ClientError, REQUEST_TIMEOUT};
use crate::resources::{InstanceManifest, Plan};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a document came to.
#[derive(Debug, Clone)]
pub enum Applied {
    /// This operation makes or changes the instance.
    Begun(Box<Operation>),
    /// The instance is on record as asked for, and nothing more is to be done.
    Done(Box<Instance>),
}

impl Client {
    /// The same, for one change: however often it is sent, it is carried out once. `key` names the
    /// change, and no other one.
    #[must_use]
    pub fn once(&self, key: uuid::Uuid) -> Self {
        // A UUID's text can stand in a header.
        HeaderValue::try_from(key.to_string()).map_or_else(|_| self.clone(), |key| self.with_header(IDEMPOTENCY_KEY, key))
    }

    /// What [`apply_instance`](Self::apply_instance) would do.
    pub async fn plan_instance(&self, key: &InstanceKey, body: &InstanceManifest) -> Result<Plan, ClientError> {
        let url = self.instance_url(key, &[], &[("dry_run", Some("true".into()))])?;
        let (_, answer) = self.send(Method::PUT, url, Self::encode(body)?, REQUEST_TIMEOUT).await?;
        self.decode(&answer)
    }

    /// Makes an instance what a document says, if it is still as it was planned on: of that revision,
    /// or not there for `None`. If it isn't, the problem is `precondition_failed`.
    pub async fn apply_instance(
        &self,
        key: &InstanceKey,
        body: &InstanceManifest,
        revision: Option<i64>,
    ) -> Result<Applied, ClientError> {
        let conditional = match revision {
            Some(revision) => self.expecting(revision)?,
            None => self.with_header(IF_NONE_MATCH, HeaderValue::from_static("*")),
        };
        let url = self.instance_url(key, &[], &[])?;
        let (status, answer) = conditional.send(Method::PUT, url, Self::encode(body)?, REQUEST_TIMEOUT).await?;
        match status {
            StatusCode::ACCEPTED => Ok(Applied::Begun(Box::new(self.decode(&answer)?))),
            _ => Ok(Applied::Done(Box::new(self.decode(&answer)?))),
        }
    }
}
