//! Deploy a PostgreSQL instance.

use duroxide::ActivityContext;
use std::time::Duration;

use toygres_models::{DnsLabel, Failure, FailureKind, InstanceSpec, Invalid, Password, Power, StorageSize};

use crate::context::{Context, OperationContext, run_while_valid};
use crate::kill_point::kill_point;
use crate::platform::Deployment;
use crate::secrets;
use crate::types::{DeployPostgresInput, DeployPostgresOutput, instance_key};

/// How long a server whose password was lost may take to be ready for a new one.
const NEW_PASSWORD_TIMEOUT: Duration = Duration::from_secs(60);

/// See [`DEPLOY_POSTGRES`](crate::names::activities::DEPLOY_POSTGRES).
pub async fn deploy_postgres_activity(
    context: Context,
    ctx: ActivityContext,
    input: DeployPostgresInput,
) -> Result<DeployPostgresOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let password: Password = input.password.parse()?;
    let operation = context.operation_context(&ctx).await?;
    let spec = match &operation {
        // The operation has more than the activity's fields say.
        Some(operation) => operation.target().clone(),
        None => spec_of(&context, &input)?,
    };
    let deploy = async {
        let place = context.place(operation.as_ref()).await?;
        let instance = operation.as_ref().map(OperationContext::instance);
        let settled = match instance {
            Some(instance) if place.secrets.settle(&key, instance.id).await? => Some(instance.id),
            _ => None,
        };
        let data_exists = instance.is_some_and(|instance| !instance.status.members.is_empty());
        let (password, is_lost) = match secrets::resolve(&*place.secrets, password).await {
            Ok(password) => (password, false),
            // The server goes on with it, and nobody knows it any more.
            Err(failure) if failure.kind == FailureKind::NotFound && data_exists => (Password::generate(), true),
            Err(failure) => return Err(failure),
        };
        let is_to_run = spec.power == Power::Running;
        let instance_id = instance.map(|instance| instance.id);
        let deployment = Deployment { key, instance_id, spec, password, data_exists };
        let created = place.platform.ensure(&deployment).await?;
        if let Some(instance_id) = settled {
            // Only now: the server starts meanwhile.
            place.secrets.discard(&deployment.key, instance_id).await?;
        }
        if is_lost && is_to_run {
            let Deployment { key, password, .. } = &deployment;
            place.platform.wait_ready(key, NEW_PASSWORD_TIMEOUT).await?;
            // Kept last: cut off before, it is done again with another one.
            place.platform.set_password(key, password).await?;
            kill_point("lost-password-set");
            place.secrets.put(key, password).await?;
            // What is kept beside it may be to be written anew.
            place.platform.ensure(&deployment).await?;
        }
        Ok(created)
    };
    let created = run_while_valid(operation.as_ref(), deploy).await?;
    Ok(DeployPostgresOutput { instance_name: input.instance_name, namespace: input.namespace, created })
}

/// What the activity's own fields ask for.
fn spec_of(context: &Context, input: &DeployPostgresInput) -> Result<InstanceSpec, Failure> {
    let spec = InstanceSpec {
        storage_size_gb: StorageSize::try_from(i64::from(input.storage_size_gb))?,
        use_load_balancer: input.use_load_balancer,
        dns_label: input.dns_label.as_deref().map(str::parse::<DnsLabel>).transpose()?,
        ..InstanceSpec::new(context.platforms.default_name(), input.postgres_version.parse()?)
    };
    if spec.dns_label.is_some() && !spec.use_load_balancer {
        return Err(Invalid::new("dns_label", "needs use_load_balancer: a private instance has no public name").into());
    }
    Ok(spec)
}
