//! Look at the instances of a shard, again and again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::Utc;
use duroxide::ActivityContext;
use duroxide::providers::PruneOptions;
use futures::{StreamExt, stream};
use toygres_models::store::{Instance, Shard};
use toygres_models::{Failure, FailureKind, Health, InstanceKey, Store};
use uuid::Uuid;

use crate::context::Context;
use crate::platform::probe::Checked;
use crate::platforms::Place;
use crate::types::{SweepHealthInput, SweepHealthOutput};

/// Instances that are looked at at once. Those that hang are waited for once, and then glanced at.
const AT_ONCE: usize = 64;
const PAGE: i64 = 500;
/// After so many looks the activity ends, and the workflow begins the next one: five minutes, at an interval of 10 s.
const CYCLES: u32 = 30;

/// See [`SWEEP_HEALTH`](crate::names::activities::SWEEP_HEALTH).
pub async fn sweep_health_activity(
    context: Context,
    ctx: ActivityContext,
    input: SweepHealthInput,
) -> Result<SweepHealthOutput, Failure> {
    let Some(store) = &context.store else {
        return Err(Failure::permanent(FailureKind::Store, "there is no metadata store: set DATABASE_URL"));
    };
    // Nothing else removes what earlier executions of the workflow left.
    let options = PruneOptions { keep_last: Some(1), ..PruneOptions::default() };
    if let Err(error) = ctx.get_client().prune_executions(ctx.instance_id(), options).await {
        ctx.trace_warn(format!("the sweep's history could not be cut: {error}"));
    }
    let interval = context.health_interval;
    let mut sweep = Sweep {
        store,
        swept: context.swept.clone(),
        shard: &input.shard,
        workflow_id: ctx.instance_id(),
        interval,
        was_reached: None,
        ended: Mutex::default(),
    };
    for cycle in 0..CYCLES {
        let begun = Instant::now();
        let ends = async {
            tokio::select! {
                () = ctx.cancelled() => {}
                () = context.stopping.cancelled() => {}
            }
        };
        let work = async {
            if let Err(failure) = sweep.once(&context).await {
                ctx.trace_warn(format!("instances could not be looked at; it is tried again: {failure}"));
            }
            tokio::time::sleep(interval.saturating_sub(begun.elapsed())).await;
        };
        tokio::select! {
            () = work => {}
            () = ends => return Ok(SweepHealthOutput { cycles: cycle, is_stopped: true }),
        }
    }
    Ok(SweepHealthOutput { cycles: CYCLES, is_stopped: false })
}

/// The instances that this process looks at, by their shards: of several servers each has some.
#[derive(Debug, Clone, Default)]
pub struct Swept(Arc<RwLock<HashMap<Shard, HashSet<Uuid>>>>);

impl Swept {
    /// Whether the instance of that id is among them.
    #[must_use]
    pub fn has(&self, id: Uuid) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().any(|ids| ids.contains(&id))
    }

    fn set(&self, shard: &Shard, ids: HashSet<Uuid>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(shard.clone(), ids);
    }

    fn remove(&self, shard: &Shard) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(shard);
    }
}

struct Sweep<'a> {
    store: &'a Store,
    swept: Swept,
    shard: &'a Shard,
    workflow_id: &'a str,
    interval: Duration,
    /// Whether the platform could be asked the last time; `None` before the first.
    was_reached: Option<bool>,
    /// The instances whose server was not ready the last time.
    ended: Mutex<HashSet<Uuid>>,
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        self.swept.remove(self.shard);
    }
}

impl Sweep<'_> {
    async fn once(&mut self, context: &Context) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut after = None;
        let (mut looked_at, mut platform, mut platform_failure) = (HashSet::new(), None, None);
        loop {
            let page = self.store.instances_to_probe(self.shard, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(InstanceKey::parse(&last.namespace, &last.name)?);
            let place = context.platforms.of(last).await?;
            let mut looks = Vec::with_capacity(page.len());
            for instance in &page {
                looks.push(self.look(&place, instance));
            }
            let failures: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
            looked_at.extend(page.iter().map(|instance| instance.id));
            platform = Some(place.platform.name());
            platform_failure = platform_failure.or(failures.into_iter().flatten().next());
        }
        if let Some(platform) = platform
            && self.was_reached != Some(platform_failure.is_none())
        {
            let words = platform_failure.as_ref().map(|failure: &Failure| failure.message.as_str());
            self.store.record_platform_reached(platform, &self.shard.place, words).await?;
            self.was_reached = Some(platform_failure.is_none());
        }
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| looked_at.contains(id));
        let interval_seconds = self.interval.as_secs_f64();
        let instances = i32::try_from(looked_at.len()).unwrap_or(i32::MAX);
        self.swept.set(self.shard, looked_at);
        self.store.finish_sweep(self.shard, interval_seconds, begun.elapsed().as_secs_f64(), instances).await?;
        Ok(())
    }

    /// Looks at one; why its platform can't be asked, if so. What goes wrong with one is nothing to the others.
    async fn look(&self, place: &Place, instance: &Instance) -> Option<Failure> {
        let key = match InstanceKey::parse(&instance.namespace, &instance.name) {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(instance.id = %instance.id, %error, "an instance has a name that none can have");
                return None;
            }
        };
        let (begun, begun_at) = (Instant::now(), Utc::now());
        let Checked { health, platform_failure, .. } = place.check(&key, &instance.spec.owner, Duration::ZERO).await;
        metrics::histogram!("toygres_health_probe_duration_seconds", "health" => health.status.as_str()).record(begun.elapsed());
        if !self.has_just_ended(instance, &health)
            && !self.is_known(instance, &health)
            && let Err(error) = self.store.record_health(instance.id, &health, begun_at, Some(self.workflow_id)).await
        {
            tracing::warn!(instance.name = %key, %error, "an instance's health could not be written down; the next look is soon");
        }
        platform_failure
    }

    /// Whether its server is seen not to be ready for the first time. That one ended the platform tells, and mostly it is back
    /// before the next look.
    fn has_just_ended(&self, instance: &Instance, health: &Health) -> bool {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        match health.is_not_ready() {
            true => ended.insert(instance.id),
            false => {
                ended.remove(&instance.id);
                false
            }
        }
    }

    fn is_known(&self, instance: &Instance, health: &Health) -> bool {
        instance.status.health().as_ref() == Some(health)
            && instance.status.health_check_orchestration_id.as_deref() == Some(self.workflow_id)
    }
}
