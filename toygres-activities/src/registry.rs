//! Registry builders for Toygres activities

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use duroxide::ActivityContext;
use duroxide::runtime::registry::{ActivityRegistry, ActivityRegistryBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toygres_models::{Failure, FailureKind};

use crate::activities::{
    delete_postgres, deploy_postgres, get_connection_strings, restart_postgres, revert_operation, rotate_password, sweep_health,
    test_connection, update_metadata, wait_for_ready,
};
use crate::context::{Context, LazyContext};
use crate::names::activities;

/// Create an [`ActivityRegistry`] with all Toygres activities, their context taken from the
/// environment when the first of them runs (see [`Context::from_environment`]).
///
/// # Example
///
/// ```rust
/// let activities = toygres_activities::registry::create_activity_registry();
/// ```
#[must_use]
pub fn create_activity_registry() -> ActivityRegistry {
    build(&LazyContext::from_environment())
}

/// Create an [`ActivityRegistry`] with all Toygres activities, working with `context`.
#[must_use]
pub fn create_activity_registry_with(context: Context) -> ActivityRegistry {
    build(&LazyContext::ready(context))
}

fn build(context: &LazyContext) -> ActivityRegistry {
    let mut builder = ActivityRegistry::builder();
    builder = register(builder, context, activities::DEPLOY_POSTGRES, deploy_postgres::deploy_postgres_activity);
    builder = register(builder, context, activities::DELETE_POSTGRES, delete_postgres::delete_postgres_activity);
    builder = register(builder, context, activities::WAIT_FOR_READY, wait_for_ready::wait_for_ready_activity);
    builder =
        register(builder, context, activities::GET_CONNECTION_STRINGS, get_connection_strings::get_connection_strings_activity);
    builder = register(builder, context, activities::TEST_CONNECTION, test_connection::test_connection_activity);
    builder = register(builder, context, activities::UPDATE_METADATA, update_metadata::update_metadata_activity);
    builder = register(builder, context, activities::RESTART_POSTGRES, restart_postgres::restart_postgres_activity);
    builder = register(builder, context, activities::ROTATE_PASSWORD, rotate_password::rotate_password_activity);
    builder = register(builder, context, activities::REVERT_OPERATION, revert_operation::revert_operation_activity);
    builder = register(builder, context, activities::SWEEP_HEALTH, sweep_health::sweep_health_activity);
    // The names are different constants, so there is no error that `build` could drop.
    builder.build()
}

/// Registers an activity: decode, note the step, run, note its end, encode.
fn register<Input, Output, Run, Running>(
    builder: ActivityRegistryBuilder,
    context: &LazyContext,
    name: &'static str,
    run: Run,
) -> ActivityRegistryBuilder
where
    Input: DeserializeOwned + Send + 'static,
    Output: Serialize + Send + Sync + 'static,
    Run: Fn(Context, ActivityContext, Input) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<Output, Failure>> + Send + 'static,
{
    let (context, run) = (context.clone(), Arc::new(run));
    builder.register(name, move |ctx: ActivityContext, input: String| {
        let (context, run) = (context.clone(), run.clone());
        let activity = async move {
            let step = name.rsplit("::").next().unwrap_or(name);
            let context = context.get().await?;
            if let Some((store, operation_id)) = context.operation(&ctx) {
                store.begin_step(operation_id, step).await?;
            }
            let operation = context.operation(&ctx).map(|(store, id)| (store.clone(), id));
            let begun = Instant::now();
            let result = match decode::<Input>(&input) {
                Ok(input) => {
                    ctx.trace_info(format!("{step}: begins"));
                    run(context.clone(), ctx.clone(), input).await
                }
                Err(failure) => Err(failure),
            };
            match &result {
                Ok(_) => ctx.trace_info(format!("{step}: done")),
                Err(failure) => ctx.trace_warn(format!("{step}: {failure}")),
            }
            if operation.is_some() {
                let outcome = if result.is_ok() { "succeeded" } else { "failed" };
                metrics::histogram!("toygres_operation_step_duration_seconds", "step" => step, "outcome" => outcome)
                    .record(begun.elapsed());
            }
            if let Some((store, operation_id)) = operation
                && let Err(error) = store.end_step(operation_id, step, result.as_ref().err()).await
            {
                // What the activity did counts; the step is noted again when it is repeated.
                ctx.trace_warn(format!("{step}: its end could not be noted: {error}"));
            }
            let output = serde_json::to_string(&result?);
            output.map_err(|error| {
                Failure::permanent(FailureKind::Internal, format!("the output of {step} can't be written: {error}"))
            })
        };
        let boxed: Pin<Box<dyn Future<Output = Result<String, String>> + Send>> =
            Box::pin(async move { activity.await.map_err(|failure: Failure| failure.encode()) });
        boxed
    })
}

/// Reads an activity's input; the error names the field and, since it may be a secret, never
/// repeats what stood there.
fn decode<Input: DeserializeOwned>(input: &str) -> Result<Input, Failure> {
    let deserializer = &mut serde_json::Deserializer::from_str(input);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let problem = match inner.classify() {
            serde_json::error::Category::Data if path == "." => {
                // "missing field `name`": the text names the field and holds no value.
                let text = inner.to_string();
                if text.starts_with("missing field") { text } else { "is not an object with this activity's fields".to_owned() }
            }
            serde_json::error::Category::Data => format!("{path}: has the wrong type or is out of range"),
            _ => "is not JSON".to_owned(),
        };
        Failure::permanent(FailureKind::InvalidInput, format!("invalid input: {problem}"))
    })
}
