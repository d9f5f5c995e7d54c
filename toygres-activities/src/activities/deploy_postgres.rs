//! Deploy a PostgreSQL instance.

use duroxide::ActivityContext;
use toygres_models::store::{Exposure, Instance};
use toygres_models::{Failure, Invalid, Password, StorageSize};

use crate::context::{Context, Order, while_wanted};
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
    let order = context.order(&ctx).await?;
    // What the activity's fields don't say, the instance's record does.
    let instance = order.as_ref().map(Order::instance);
    let asked = |field: fn(&Instance) -> &Option<String>| instance.and_then(|instance| field(instance).as_deref());
    let mut spec = InstanceSpec {
        postgres_version: input.postgres_version.parse()?,
        storage_size: StorageSize::try_from(i64::from(input.storage_size_gb))?,
        password: String::new().into(),
        use_load_balancer: input.use_load_balancer,
        dns_label: input.dns_label,
        cpu: asked(|instance| &instance.cpu).map(str::parse).transpose()?,
        memory: asked(|instance| &instance.memory).map(str::parse).transpose()?,
        storage_class: asked(|instance| &instance.storage_class).map(str::parse).transpose()?,
        key,
    };
    if spec.dns_label.is_some() && !spec.use_load_balancer {
        return Err(Invalid::new("dns_label", "needs use_load_balancer: a private instance has no public name").into());
    }
    let exposure = Exposure { use_load_balancer: spec.use_load_balancer, dns_label: spec.dns_label.clone() };
    let deploy = async {
        let place = context.place(order.as_ref()).await?;
        spec.password = secrets::resolve(&*place.secrets, password).await?;
        place.platform.ensure(&spec).await
    };
    let created = while_wanted(order.as_ref(), Some(&exposure), deploy).await?;
    Ok(DeployPostgresOutput { instance_name: input.instance_name, namespace: input.namespace, created })
}
