//! Has the instances of this server's places looked at: each shard has a workflow, which any server of the place may carry on.

use std::sync::Arc;
use std::time::Duration;

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

/// Makes sure that the sweeps of the platforms that are open run, for as long as the server does.
pub async fn keep_sweeping(platforms: Platforms, workflows: Arc<Workflows>) {
    loop {
        for place in platforms.opened() {
            let (platform, id) = (place.platform.name(), place.platform.cluster_id().await);
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
        tokio::time::sleep(PERIOD).await;
    }
}

fn shards(platform: PlatformName, place: &str) -> impl Iterator<Item = Shard> {
    let of = match platform {
        PlatformName::Local => SHARDS_OF_A_MACHINE,
        PlatformName::Kubernetes => SHARDS_OF_A_CLUSTER,
    };
    (0..of).map(move |number| Shard { place: place.to_owned(), number, of })
}
