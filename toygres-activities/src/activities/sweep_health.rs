//! Look at the instances of a shard, again and again.

use std::time::{Duration, Instant};

use duroxide::ActivityContext;
use duroxide::providers::PruneOptions;
use futures::{StreamExt, stream};
use toygres_models::store::{Instance, Shard};
use toygres_models::{Failure, FailureKind, Health, HealthStatus, InstanceKey, Store};

use crate::context::Context;
use crate::platform::probe::check;
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
    let mut sweep = Sweep { store, shard: &input.shard, workflow_id: ctx.instance_id(), interval, is_away: false };
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
            () = ends => return Ok(SweepHealthOutput { cycles: cycle }),
        }
    }
    Ok(SweepHealthOutput { cycles: CYCLES })
}

struct Sweep<'a> {
    store: &'a Store,
    shard: &'a Shard,
    workflow_id: &'a str,
    interval: Duration,
    /// Whether the platform could not be asked the last time.
    is_away: bool,
}

impl Sweep<'_> {
    async fn once(&mut self, context: &Context) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut after = None;
        let (mut looked_at, mut away) = (0, None);
        loop {
            let page = self.store.instances_to_probe(self.shard, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(InstanceKey::parse(&last.namespace, &last.name)?);
            let place = context.platforms.of(last).await?;
            let mut looks = Vec::with_capacity(page.len());
            for instance in &page {
                looks.push(self.look(&place, instance));
            }
            let seen: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
            looked_at += i32::try_from(page.len()).unwrap_or(i32::MAX);
            for seen in seen {
                away = away.or(seen?);
            }
            self.tell_of_platform(&place, away.as_deref()).await?;
        }
        let interval_seconds = self.interval.as_secs_f64();
        self.store.finish_sweep(self.shard, interval_seconds, begun.elapsed().as_secs_f64(), looked_at).await?;
        Ok(())
    }

    /// Looks at one; why it can't be, if so.
    async fn look(&self, place: &Place, instance: &Instance) -> Result<Option<String>, Failure> {
        let key = InstanceKey::parse(&instance.namespace, &instance.name)?;
        // Somebody who asked may have looked a moment ago.
        let begun = Instant::now();
        let health = check(&*place.platform, &key, self.interval / 2).await.health;
        metrics::histogram!("toygres_health_probe_duration_seconds", "health" => health.status.as_str()).record(begun.elapsed());
        let words = (health.status == HealthStatus::Unknown).then(|| health.words());
        if !self.is_known(instance, &health) {
            self.store.record_health(instance.id, &health, Some(self.workflow_id)).await?;
        }
        Ok(words)
    }

    fn is_known(&self, instance: &Instance, health: &Health) -> bool {
        instance.status.health().as_ref() == Some(health)
            && instance.status.health_check_orchestration_id.as_deref() == Some(self.workflow_id)
    }

    async fn tell_of_platform(&mut self, place: &Place, away: Option<&str>) -> Result<(), Failure> {
        if self.is_away != away.is_some() {
            self.store.record_platform_reached(place.platform.name(), away).await?;
            self.is_away = away.is_some();
        }
        Ok(())
    }
}
