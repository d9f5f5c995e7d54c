//! Restart a PostgreSQL instance's server.

use duroxide::ActivityContext;
use toygres_models::Failure;

use crate::context::{Context, run_while_valid};
use crate::types::{RestartPostgresInput, RestartPostgresOutput, instance_key};

/// See [`RESTART_POSTGRES`](crate::names::activities::RESTART_POSTGRES).
pub async fn restart_postgres_activity(
    context: Context,
    ctx: ActivityContext,
    input: RestartPostgresInput,
) -> Result<RestartPostgresOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let operation = context.operation_context(&ctx).await?;
    let request_id =
        operation.as_ref().map_or_else(|| ctx.instance_id().to_owned(), |operation| operation.operation_id().to_string());
    let restart = async { context.place(operation.as_ref()).await?.platform.restart(&key, &request_id).await };
    let restarted = run_while_valid(operation.as_ref(), restart).await?;
    Ok(RestartPostgresOutput { restarted })
}
