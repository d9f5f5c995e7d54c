//! Deploy a PostgreSQL instance.

use duroxide::ActivityContext;
use toygres_models::{DnsLabel, Failure, InstanceSpec, Invalid, Password, StorageSize};

use crate::context::{Context, OperationContext, run_while_valid};
use crate::platform::Deployment;
use crate::secrets;
use crate::types::{DeployPostgresInput, DeployPostgresOutput, instance_key};

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
        let password = secrets::resolve(&*place.secrets, password).await?;
        let instance = operation.as_ref().map(OperationContext::instance);
        let deployment = Deployment {
            key,
            instance_id: instance.map(|instance| instance.id),
            spec,
            password,
            data_exists: instance.is_some_and(|instance| !instance.status.members.is_empty()),
        };
        place.platform.ensure(&deployment).await
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
