//! The activities alone, with no server: deploys one PostgreSQL instance, tests it and cleans it up.
//!
//! ```text
//! cargo run -p toygres-activities --example manual_deploy
//! TOYGRES_PLATFORM=kubernetes cargo run -p toygres-activities --example manual_deploy
//! ```
//!
//! The platform and its settings come from the environment, as `create_activity_registry()` takes
//! them. `NAMESPACE`, `INSTANCE_NAME`, `POSTGRES_VERSION`, `PUBLIC=1` and `DNS_LABEL` say what is
//! deployed; `KEEP=1` leaves it there. A workflow runs the same steps durably; here, one duroxide
//! runtime in memory runs them one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::{Runtime, RuntimeOptions};
use duroxide::{Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};
use toygres_activities::names::activities;
use toygres_activities::registry::create_activity_registry;
use toygres_activities::{
    DeletePostgresInput, DeployPostgresInput, DeployPostgresOutput, GetConnectionStringsInput, GetConnectionStringsOutput,
    TestConnectionInput, TestConnectionOutput, WaitForReadyInput, WaitForReadyOutput,
};
use toygres_models::{Failure, Password};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// One activity as a workflow of its own.
struct Activities {
    client: Client,
    count: std::cell::Cell<u32>,
}

impl Activities {
    async fn run<Input: serde::Serialize, Output: serde::de::DeserializeOwned>(
        &self,
        title: &str,
        name: &str,
        input: &Input,
    ) -> Outcome<Output> {
        self.count.set(self.count.get() + 1);
        let number = self.count.get();
        println!("Step {number}: {title} …");
        let begun = Instant::now();
        // Trying again is what a workflow does; the input says which failures that helps with.
        let failure = loop {
            let id = uuid::Uuid::new_v4().to_string();
            self.client.start_orchestration(&id, "run", serde_json::to_string(&(name, serde_json::to_string(input)?))?).await?;
            match self.client.wait_for_orchestration(&id, Duration::from_secs(600)).await? {
                OrchestrationStatus::Completed { output, .. } => {
                    println!("  done in {:.1} s", begun.elapsed().as_secs_f32());
                    return Ok(serde_json::from_str(&output)?);
                }
                OrchestrationStatus::Failed { details, .. } => {
                    let failure = Failure::decode(&details.display_message());
                    if !failure.retryable || begun.elapsed() > Duration::from_secs(300) {
                        break failure;
                    }
                    println!("  not yet: {failure}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return Err(format!("the runtime says {other:?}").into()),
            }
        };
        println!("  failed: {failure}");
        for line in &failure.evidence {
            println!("    {line}");
        }
        Err(failure.message.into())
    }
}

async fn run_one(ctx: OrchestrationContext, input: String) -> Result<String, String> {
    let (name, input): (String, String) = serde_json::from_str(&input).map_err(|error| error.to_string())?;
    ctx.schedule_activity(name, input).await
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

async fn deploy(activities: &Activities, input: &DeployPostgresInput, made: &mut bool) -> Outcome<()> {
    let deployed: DeployPostgresOutput = activities.run("deploying PostgreSQL", activities::DEPLOY_POSTGRES, input).await?;
    println!(
        "  {}/{}: {}",
        deployed.namespace,
        deployed.instance_name,
        if deployed.created { "created" } else { "was there already" }
    );
    if !deployed.created {
        return Err("this instance is somebody's; it was left as it is. Give another INSTANCE_NAME".into());
    }
    *made = true;

    let wait =
        WaitForReadyInput { namespace: input.namespace.clone(), instance_name: input.instance_name.clone(), timeout_seconds: 60 };
    let ready: WaitForReadyOutput = activities.run("waiting until it is ready", activities::WAIT_FOR_READY, &wait).await?;
    println!("  phase {} after {} s", ready.pod_phase, ready.ready_after_seconds);

    let strings = GetConnectionStringsInput {
        namespace: input.namespace.clone(),
        instance_name: input.instance_name.clone(),
        password: input.password.clone(),
        use_load_balancer: input.use_load_balancer,
        dns_label: input.dns_label.clone(),
    };
    let strings: GetConnectionStringsOutput =
        activities.run("getting connection strings", activities::GET_CONNECTION_STRINGS, &strings).await?;
    let hidden = |uri: &str| uri.replacen(&format!(":{}@", input.password), ":…@", 1);
    println!("  {}", hidden(&strings.ip_connection_string));
    if let Some(uri) = &strings.dns_connection_string {
        println!("  {}", hidden(uri));
    }

    let test = TestConnectionInput { connection_string: strings.ip_connection_string };
    let tested: TestConnectionOutput = activities.run("testing the connection", activities::TEST_CONNECTION, &test).await?;
    println!("  {}", tested.version);
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let dns_label = std::env::var("DNS_LABEL").ok().filter(|label| !label.is_empty());
    let input = DeployPostgresInput {
        namespace: setting("NAMESPACE", "default"),
        instance_name: setting("INSTANCE_NAME", &format!("manual-{}", &uuid::Uuid::new_v4().simple().to_string()[..6])),
        // A literal, which this process alone keeps. A durable workflow is given a reference.
        password: secrecy::ExposeSecret::expose_secret(&Password::generate()).to_owned(),
        postgres_version: setting("POSTGRES_VERSION", "17"),
        storage_size_gb: 1,
        use_load_balancer: setting("PUBLIC", "0") == "1",
        dns_label,
    };
    let store = Arc::new(SqliteProvider::new_in_memory().await?);
    let workflows = OrchestrationRegistry::builder().register("run", run_one).build();
    // One step at a time, and what it does is on the screen already.
    let mut options = RuntimeOptions { orchestration_concurrency: 1, worker_concurrency: 1, ..RuntimeOptions::default() };
    options.observability.log_level = "error".to_owned();
    let runtime = Runtime::start_with_options(store.clone(), create_activity_registry(), workflows, options).await;
    let activities = Activities { client: Client::new(store), count: std::cell::Cell::new(0) };

    // A name of its own nobody else has; under any other, what isn't seen being made may be another's.
    let mut made = std::env::var_os("INSTANCE_NAME").is_none();
    let deployed = deploy(&activities, &input, &mut made).await;
    if !made {
        println!("Nothing was made, and nothing is cleaned up.");
    } else if setting("KEEP", "0") == "1" {
        println!("It is left there, as KEEP=1 says.");
    } else {
        let delete = DeletePostgresInput { namespace: input.namespace.clone(), instance_name: input.instance_name.clone() };
        let deleted: toygres_activities::DeletePostgresOutput =
            activities.run("cleaning up", activities::DELETE_POSTGRES, &delete).await?;
        println!("  {}", if deleted.deleted { "deleted" } else { "there was nothing" });
    }
    runtime.shutdown(None).await;
    deployed
}
