//! Parameters of PostgreSQL that toygres sets in its files and `ALTER SYSTEM`, which wins, sets otherwise.

use toygres_models::{Drift, Failure};

use super::Session;
use super::connection::Target;

/// Of each parameter its name, what it is set to by either, and whether it takes a restart. Toygres's files are outside the data
/// directory, and no user's are. Of a parameter that a file has twice, the last counts.
const OVERRIDDEN: &str = "
    WITH every AS (
        SELECT name, setting, seqno, sourcefile = current_setting('data_directory') || '/postgresql.auto.conf' AS by_user
        FROM pg_file_settings
        WHERE sourcefile = current_setting('data_directory') || '/postgresql.auto.conf'
            OR NOT starts_with(sourcefile, current_setting('data_directory') || '/')),
    last AS (SELECT DISTINCT ON (name, by_user) name, setting, by_user FROM every ORDER BY name, by_user, seqno DESC)
    SELECT ARRAY[theirs.name, left(theirs.setting, 200), left(ours.setting, 200), s.context]
    FROM last theirs JOIN last ours ON ours.name = theirs.name JOIN pg_settings s ON s.name = theirs.name
    WHERE theirs.by_user AND NOT ours.by_user AND theirs.setting IS DISTINCT FROM ours.setting
    ORDER BY theirs.name LIMIT 50";

pub(crate) async fn overridden(target: &Target) -> Result<Vec<Drift>, Failure> {
    let session = Session::open(target).await?;
    let rows: Vec<Vec<Option<String>>> = session.values(OVERRIDDEN, &[]).await?;
    session.close().await;
    let drift = |row: Vec<Option<String>>| {
        let [name, found, wanted, context] = <[Option<String>; 4]>::try_from(row).ok()?;
        let name = Drift::shown(&name?);
        let then = if context.as_deref() == Some("postmaster") { "a restart" } else { "a reload" };
        Some(Drift {
            changed_by: Some("ALTER SYSTEM".into()),
            remedy: Some(format!("ALTER SYSTEM RESET {name} and {then} give it back to toygres")),
            field: Some(name),
            found: found.as_deref().map(Drift::shown),
            wanted: wanted.as_deref().map(Drift::shown),
            ..Drift::gone("PostgreSQL's configuration")
        })
    };
    Ok(rows.into_iter().filter_map(drift).collect())
}
