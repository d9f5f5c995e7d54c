//! Instances made, or made to be, what a document says.

use hyper::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, StatusCode};
use toygres_models::InstanceKey;
use toygres_models::store::{Instance, Operation};

use super::{Client, ClientError, REQUEST_TIMEOUT, Submitted};
use crate::resources::{AdoptableInstance, InstanceManifest, Page, Plan};

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

    /// The instances that are on a platform and not on record.
    pub async fn adoptable_instances(&self) -> Result<Page<AdoptableInstance>, ClientError> {
        let url = self.url(&["v1", "adoptable"], &[])?;
        let (_, answer) = self.send(Method::GET, url, Vec::new(), REQUEST_TIMEOUT).await?;
        self.decode(&answer)
    }

    /// Takes an instance that is on a platform on record.
    pub async fn adopt_instance(&self, key: &InstanceKey) -> Result<Submitted, ClientError> {
        let url = self.url(&["v1", "adoptable", key.name.as_str()], &[("namespace", Some(key.namespace.to_string()))])?;
        self.submit(Method::POST, url, Vec::new()).await
    }

    /// What [`apply_instance`](Self::apply_instance) would do.
    pub async fn plan_instance(&self, key: &InstanceKey, body: &InstanceManifest) -> Result<Plan, ClientError> {
        let url = self.instance_url(key, &[], &[("dry_run", Some("true".into()))])?;
        let (_, answer) = self.send(Method::PUT, url, Self::encode(body)?, REQUEST_TIMEOUT).await?;
        self.decode(&answer)
    }

    /// Changes an instance that is there to what a document says.
    pub async fn change_instance(&self, key: &InstanceKey, body: &InstanceManifest) -> Result<Applied, ClientError> {
        self.put_instance(&self.with_header(IF_MATCH, HeaderValue::from_static("*")), key, body).await
    }

    /// Makes an instance what a document says, if it is still as it was planned on: of that generation,
    /// or not there for `None`. If it isn't, the problem is `precondition_failed`.
    pub async fn apply_instance(
        &self,
        key: &InstanceKey,
        body: &InstanceManifest,
        generation: Option<i64>,
    ) -> Result<Applied, ClientError> {
        let conditional = match generation {
            Some(generation) => self.expecting(generation)?,
            None => self.with_header(IF_NONE_MATCH, HeaderValue::from_static("*")),
        };
        self.put_instance(&conditional, key, body).await
    }

    async fn put_instance(&self, conditional: &Self, key: &InstanceKey, body: &InstanceManifest) -> Result<Applied, ClientError> {
        let url = self.instance_url(key, &[], &[])?;
        let (status, answer) = conditional.send(Method::PUT, url, Self::encode(body)?, REQUEST_TIMEOUT).await?;
        match status {
            StatusCode::ACCEPTED => Ok(Applied::Begun(Box::new(self.decode(&answer)?))),
            _ => Ok(Applied::Done(Box::new(self.decode(&answer)?))),
        }
    }
}
