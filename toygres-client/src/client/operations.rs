//! Operations: waited for, watched, cancelled, tried again.

use std::time::Duration;

use hyper::Method;
use toygres_models::store::Operation;
use toygres_models::{InstanceKey, OperationKind};
use uuid::Uuid;

use super::{Client, ClientError, REQUEST_TIMEOUT, Submitted};

impl Client {
    /// One operation, as soon as its revision is beyond `after_revision`, it is final, or the
    /// server has held the request for `wait`.
    pub async fn operation_after(&self, id: Uuid, after_revision: i64, wait: Duration) -> Result<Operation, ClientError> {
        let query =
            [("wait", Some(humantime::format_duration(wait).to_string())), ("after_revision", Some(after_revision.to_string()))];
        let url = self.url(&["v1", "operations", &id.to_string()], &query)?;
        let (_, body) = self.send(Method::GET, url, Vec::new(), wait + REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }

    /// Asks for an operation that is no change of the spec: a restart.
    pub async fn request_verb(&self, key: &InstanceKey, kind: OperationKind) -> Result<Submitted, ClientError> {
        let url = self.instance_url(key, &[kind.name], &[])?;
        self.submit(Method::POST, url, Vec::new()).await
    }

    /// Cancels an operation: what it did is reverted.
    pub async fn cancel_operation(&self, id: Uuid) -> Result<Submitted, ClientError> {
        let url = self.url(&["v1", "operations", &id.to_string(), "cancel"], &[])?;
        self.submit(Method::POST, url, Vec::new()).await
    }

    /// Tries a failed operation again, by a new one.
    pub async fn retry_operation(&self, id: Uuid) -> Result<Submitted, ClientError> {
        let url = self.url(&["v1", "operations", &id.to_string(), "retry"], &[])?;
        self.submit(Method::POST, url, Vec::new()).await
    }
}
