//! `/v1/tokens` and `/v1/whoami`.

use hyper::Method;
use toygres_models::TokenName;
use toygres_models::store::Token;

use super::{Client, ClientError, PageRequest, REQUEST_TIMEOUT};
use crate::resources::{MintedToken, Page, TokenManifest, WhoAmI};

impl Client {
    /// Makes a token; its secret is in the answer and nowhere else.
    pub async fn create_token(&self, body: &TokenManifest) -> Result<MintedToken, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unsendable(error.to_string()))?;
        let (_, body) = self.send(Method::POST, self.url(&["v1", "tokens"], &[])?, body, REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }

    /// A page of the tokens that aren't revoked, in order of their names.
    pub async fn tokens(&self, page: &PageRequest) -> Result<Page<Token>, ClientError> {
        self.get(self.url(&["v1", "tokens"], &[page.limit(), page.cursor()])?).await
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, name: &TokenName) -> Result<Token, ClientError> {
        let url = self.url(&["v1", "tokens", name.as_str()], &[])?;
        let (_, body) = self.send(Method::DELETE, url, Vec::new(), REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }

    /// Whose this client's token is.
    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.get(self.url(&["v1", "whoami"], &[])?).await
    }
}
