//! Give an instance's user a new password.

use duroxide::ActivityContext;
use toygres_models::{Failure, Password};

use crate::context::{Context, run_while_valid};
use crate::kill_point::kill_point;
use crate::types::{RotatePasswordInput, RotatePasswordOutput, instance_key};

/// See [`ROTATE_PASSWORD`](crate::names::activities::ROTATE_PASSWORD).
pub async fn rotate_password_activity(
    context: Context,
    ctx: ActivityContext,
    input: RotatePasswordInput,
) -> Result<RotatePasswordOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let operation = context.operation_context(&ctx).await?;
    let rotate = async {
        let place = context.place(operation.as_ref()).await?;
        // Kept first: what a server has and nobody knows would shut everybody out.
        place.secrets.put(&key, &Password::generate()).await?;
        kill_point("rotate-password-kept");
        let password = place.secrets.get(&key).await?;
        place.platform.set_password(&key, &password).await
    };
    run_while_valid(operation.as_ref(), rotate).await?;
    Ok(RotatePasswordOutput {})
}
