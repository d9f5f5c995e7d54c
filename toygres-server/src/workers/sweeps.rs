//! Has the instances of this server's places looked at: each shard has a workflow, which any server of the place may carry on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use toygres_activities::{Platforms, SweepHealthInput};
use toygres_models::PlatformName;
use toygres_models::store::Shard;

use super::workflows::Workflows;

/// A machine has one server.
const SHARDS_OF_A_MACHINE: i32 = 1;
/// A cluster may have several servers, which share them.
const SHARDS_OF_A_CLUSTER: i32 = 4;
/// How often it is made sure that the workflows run.
const PERIOD: Duration = Duration::from_secs(10);
/// How soon a platform that was opened is seen.
const TICK: Duration = Duration::from_millis(500);

/// Makes sure that the sweeps of the platforms that are open run, for as long as the server does.
pub async fn keep_sweeping(platforms: Platforms, workflows: Arc<Workflows>) {
    let mut last = HashMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        for place in platforms.opened() {
            let platform = place.platform.name();
            if last.get(&platform).is_some_and(|at: &Instant| at.elapsed() < PERIOD) {
                continue;
            }
            last.insert(platform, Instant::now());
            let id = place.platform.cluster_id().await;
            let begun = async {
                let place = id?.unwrap_or_else(|| platform.as_str().to_owned());
                for shard in shards(platform, &place) {
                    workflows.begin_sweep(&SweepHealthInput { shard }).await?;
                }
                Ok::<_, anyhow::Error>(())
            };
            if let Err(error) = begun.await {
                tracing::warn!(%platform, %error, "the platform's instances aren't looked at now; it is tried again");
            }
        }
    }
}

fn shards(platform: PlatformName, place: &str) -> impl Iterator<Item = Shard> {
    let of = match platform {
        PlatformName::Local => SHARDS_OF_A_MACHINE,
        PlatformName::Kubernetes => SHARDS_OF_A_CLUSTER,
    };
    (0..of).map(move |number| Shard { place: place.to_owned(), number, of })
}
