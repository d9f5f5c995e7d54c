//! Get connection strings for a PostgreSQL instance.

use duroxide::ActivityContext;
use secrecy::ExposeSecret;
use toygres_models::{Failure, InstanceSpec, Password, PostgresVersion, ServerAddress};

use crate::context::{Context, OperationContext, run_while_valid};
use crate::types::{GetConnectionStringsInput, GetConnectionStringsOutput, instance_key};

/// See [`GET_CONNECTION_STRINGS`](crate::names::activities::GET_CONNECTION_STRINGS).
pub async fn get_connection_strings_activity(
    context: Context,
    ctx: ActivityContext,
    input: GetConnectionStringsInput,
) -> Result<GetConnectionStringsOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let password: Password = input.password.parse()?;
    let operation = context.operation_context(&ctx).await?;
    let owner = InstanceSpec::new(context.platforms.default_name(), PostgresVersion::OLDEST);
    let spec = operation.as_ref().map_or(&owner, OperationContext::target);
    let locate = async { context.place(operation.as_ref()).await?.platform.endpoint(&key).await };
    let endpoint = run_while_valid(operation.as_ref(), locate).await?;
    // Who gave the password itself gets it back; who gave a reference gets nothing to keep secret.
    let write = |address: &ServerAddress| match &password {
        Password::Literal(secret) => address.owner_uri(spec).with_secret(secret).expose_secret().to_owned(),
        Password::Reference(_) => address.owner_uri(spec).to_string(),
    };
    Ok(GetConnectionStringsOutput {
        ip_connection_string: write(&endpoint.address),
        dns_connection_string: endpoint.dns_address.as_ref().map(write),
        external_ip: endpoint.external_ip,
        dns_name: endpoint.dns_name,
    })
}
