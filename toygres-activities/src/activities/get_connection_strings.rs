//! Get connection strings for a PostgreSQL instance.

use duroxide::ActivityContext;
use secrecy::ExposeSecret;
use toygres_models::store::Exposure;
use toygres_models::{ConnectionUri, Failure, Password};

use crate::context::{Context, while_wanted};
use crate::types::{GetConnectionStringsInput, GetConnectionStringsOutput, instance_key};

/// See [`GET_CONNECTION_STRINGS`](crate::names::activities::GET_CONNECTION_STRINGS).
pub async fn get_connection_strings_activity(
    context: Context,
    ctx: ActivityContext,
    input: GetConnectionStringsInput,
) -> Result<GetConnectionStringsOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let password: Password = input.password.parse()?;
    let order = context.order(&ctx).await?;
    let exposure = Exposure { use_load_balancer: input.use_load_balancer, dns_label: input.dns_label };
    let locate = async { context.place(order.as_ref()).await?.platform.endpoint(&key).await };
    let endpoint = while_wanted(order.as_ref(), Some(&exposure), locate).await?;
    // Who gave the password itself gets it back; who gave a reference gets nothing to keep secret.
    let write = |uri: &ConnectionUri| match &password {
        Password::Literal(secret) => uri.with_secret(secret).expose_secret().to_owned(),
        Password::Reference(_) => uri.to_string(),
    };
    Ok(GetConnectionStringsOutput {
        ip_connection_string: write(&endpoint.uri),
        dns_connection_string: endpoint.dns_uri.as_ref().map(write),
        external_ip: endpoint.external_ip,
        dns_name: endpoint.dns_name,
    })
}
