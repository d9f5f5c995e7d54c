//! `/v1/namespaces`.

use hyper::Method;
use toygres_models::Namespace;
use toygres_models::store::NamespaceRecord;

use super::{Client, ClientError, PageRequest, REQUEST_TIMEOUT};
use crate::resources::{Page, QuotaManifest};

impl Client {
    /// A page of namespaces, in order of their names.
    pub async fn namespaces(&self, page: &PageRequest) -> Result<Page<NamespaceRecord>, ClientError> {
        self.get(self.url(&["v1", "namespaces"], &[page.limit(), page.cursor()])?).await
    }

    /// One namespace.
    pub async fn namespace(&self, name: &Namespace) -> Result<NamespaceRecord, ClientError> {
        self.get(self.url(&["v1", "namespaces", name.as_str()], &[])?).await
    }

    /// Sets a namespace's quota, all of it, unless it was changed since `revision`.
    pub async fn set_quota(
        &self,
        name: &Namespace,
        revision: i64,
        quota: &QuotaManifest,
    ) -> Result<NamespaceRecord, ClientError> {
        let body = serde_json::to_vec(quota).map_err(|error| ClientError::Unsendable(error.to_string()))?;
        let url = self.url(&["v1", "namespaces", name.as_str()], &[])?;
        let (_, body) = self.expecting(revision)?.send(Method::PUT, url, body, REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }
}
