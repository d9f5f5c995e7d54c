//! The control database, looked at behind the server's back, and steps held up in it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres, Transaction};

use crate::wait::{SOON, eventually};

/// The number in its socket's name.
pub const PORT: u16 = 5432;

/// Connects to the control database of a state directory.
///
/// # Errors
/// If it doesn't run.
pub async fn connect(state_dir: &Path) -> Result<PgPool> {
    let password = std::fs::read_to_string(state_dir.join("control/password"))?;
    let options = PgConnectOptions::new_without_pgpass()
        .socket(state_dir.join("run"))
        .port(PORT)
        .username("toygres")
        .password(&password)
        .database("postgres")
        .application_name("toygres-e2e")
        // A test that waits for a lock would hang; it fails instead.
        .options([("lock_timeout", "10s")]);
    PgPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
        .context("the control database can't be reached by its socket")
}

/// Where a step is held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When it is about to be noted as begun: nothing of it is done.
    Begin,
    /// When it is about to be noted as done: all of it is done.
    End,
    /// When its instance's new state is about to be written; of a new instance, at the commit.
    Record,
}

impl Moment {
    fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::End => "end",
            Self::Record => "record",
        }
    }
}

/// The trigger works as the one who writes, and sleeps inside the transaction of the step.
const HOLD_UP: &str = "
    CREATE TABLE public.e2e_hold_up (instance_name text, step text, moment text);
    CREATE FUNCTION public.e2e_hold_up_step() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE at text := CASE NEW.state WHEN 'running' THEN 'begin' ELSE 'end' END;
    BEGIN
        IF EXISTS (SELECT FROM public.e2e_hold_up h JOIN toygres.operations o ON o.instance_name = h.instance_name
                   WHERE o.id = NEW.operation_id AND h.step = NEW.name AND h.moment = at) THEN
            PERFORM pg_sleep(600);
        END IF;
        RETURN NEW;
    END $$;
    CREATE FUNCTION public.e2e_hold_up_record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM public.e2e_hold_up h
                   WHERE h.instance_name = NEW.name AND h.step = NEW.state AND h.moment = 'record') THEN
            PERFORM pg_sleep(600);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER e2e_hold_up BEFORE INSERT OR UPDATE ON toygres.operation_steps
        FOR EACH ROW EXECUTE FUNCTION public.e2e_hold_up_step();
    CREATE TRIGGER e2e_hold_up BEFORE UPDATE ON toygres.instances
        FOR EACH ROW EXECUTE FUNCTION public.e2e_hold_up_record();
    CREATE CONSTRAINT TRIGGER e2e_hold_up_commit AFTER INSERT ON toygres.instances DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.e2e_hold_up_record();";

/// Makes an instance's operation stop at a moment of a step until [`let_go`]. For
/// [`Moment::Record`] the step is the new state.
///
/// # Errors
/// If the database refuses.
pub async fn hold_up(control: &PgPool, instance_name: &str, step: &str, moment: Moment) -> Result<()> {
    // Once: a trigger can't be replaced while a step is held up in it.
    let (missing,): (bool,) = sqlx::query_as("SELECT to_regclass('public.e2e_hold_up') IS NULL").fetch_one(control).await?;
    if missing {
        sqlx::raw_sql(HOLD_UP).execute(control).await?;
    }
    sqlx::query("INSERT INTO public.e2e_hold_up VALUES ($1, $2, $3)")
        .bind(instance_name)
        .bind(step)
        .bind(moment.as_str())
        .execute(control)
        .await?;
    Ok(())
}

/// How many steps are held up at this moment.
///
/// # Errors
/// If the database doesn't answer.
pub async fn held_up(control: &PgPool) -> Result<i64> {
    let (count,) =
        sqlx::query_as("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetch_one(control).await?;
    Ok(count)
}

/// Waits until that many steps are held up.
///
/// # Errors
/// If they never are.
pub async fn wait_held_up(control: &PgPool, count: i64) -> Result<()> {
    let seen = async || Ok((held_up(control).await? == count).then_some(()));
    let waited = eventually(&format!("{count} held-up steps"), SOON, seen).await;
    match waited {
        Ok(()) => Ok(()),
        Err(error) => {
            let steps: Vec<(String, String, String)> = sqlx::query_as(
                "SELECT o.instance_name, s.name, s.state FROM toygres.operation_steps s JOIN toygres.operations o ON o.id = s.operation_id
                 ORDER BY s.started_at",
            )
            .fetch_all(control)
            .await?;
            let now = held_up(control).await?;
            Err(error).with_context(|| format!("{now} are; the steps: {steps:?}"))
        }
    }
}

/// Ends every hold-up: what was in the middle of a transaction is rolled back, as if the
/// connection had broken there.
///
/// # Errors
/// If the database refuses.
pub async fn let_go(control: &PgPool) -> Result<()> {
    sqlx::raw_sql("DELETE FROM public.e2e_hold_up").execute(control).await?;
    // Until nothing is found a few times in a row: one that looked just before may be about to sleep.
    let mut quiet = 0;
    eventually("nothing to be held up", SOON, async || {
        let ended = sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
        quiet = if ended.execute(control).await?.rows_affected() == 0 { quiet + 1 } else { 0 };
        Ok((quiet == 3).then_some(()))
    })
    .await
}

/// Holds the workflow engine's queue until the transaction ends: no workflow is started, told anything,
/// or goes on.
///
/// # Errors
/// If the database refuses.
pub async fn hold_queue(control: &PgPool) -> Result<Transaction<'static, Postgres>> {
    let mut held = control.begin().await?;
    sqlx::raw_sql("LOCK TABLE duroxide.orchestrator_queue IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await?;
    Ok(held)
}

/// Waits until a statement with that text waits for somebody's lock.
///
/// # Errors
/// If none ever does.
pub async fn wait_blocked(control: &PgPool, text: &str) -> Result<()> {
    wait_all_blocked(control, text, 1).await
}

/// Waits until so many statements with that text wait for somebody's lock.
///
/// # Errors
/// If they never do.
pub async fn wait_all_blocked(control: &PgPool, text: &str, count: i64) -> Result<()> {
    eventually(&format!("{count} statements with {text:?} to be blocked"), SOON, async || {
        let (blocked,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ILIKE '%' || $1 || '%'",
        )
        .bind(text)
        .fetch_one(control)
        .await?;
        Ok((blocked >= count).then_some(()))
    })
    .await
}

/// Ends what waits for a lock: a killed server's statement would be carried out after all.
///
/// # Errors
/// If the database refuses.
pub async fn end_blocked(control: &PgPool) -> Result<()> {
    sqlx::raw_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        .execute(control)
        .await?;
    Ok(())
}
