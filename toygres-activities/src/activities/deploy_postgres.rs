//! Deploy a PostgreSQL instance.

use duroxide::ActivityContext;
use toygres_models::{Failure, Invalid, Password, StorageSize};

use crate::context::Context;
use crate::platform::InstanceSpec;
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
    let mut spec = InstanceSpec {
        postgres_version: input.postgres_version.parse()?,
        storage_size: StorageSize::try_from(i64::from(input.storage_size_gb))?,
        password: String::new().into(),
        use_load_balancer: input.use_load_balancer,
        dns_label: input.dns_label,
        key,
    };
    if spec.dns_label.is_some() && !spec.use_load_balancer {
        return Err(Invalid::new("dns_label", "needs use_load_balancer: a private instance has no public name").into());
    }
    context.still_wanted(&ctx, &spec.key).await?;
    spec.password = secrets::resolve(&*context.secrets, password).await?;
    let created = context.platform.ensure(&spec).await?;
    Ok(DeployPostgresOutput { instance_name: input.instance_name, namespace: input.namespace, created })
}
