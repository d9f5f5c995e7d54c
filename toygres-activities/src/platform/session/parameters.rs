//! Parameters of PostgreSQL that toygres sets in its files and `ALTER SYSTEM`, which wins, sets otherwise.

use toygres_models::{Drift, Failure};

use super::OwnSession;

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

impl OwnSession {
    /// The parameters that toygres sets and `ALTER SYSTEM` sets otherwise.
    ///
    /// # Errors
    /// If the server doesn't answer.
    pub async fn overridden_parameters(self) -> Result<Vec<Drift>, Failure> {
        let rows: Vec<Vec<Option<String>>> = self.session.values(OVERRIDDEN, &[]).await?;
        self.close().await;
        Ok(rows.into_iter().filter_map(overridden).collect())
    }
}

/// A parameter's name, what either sets it to, and whether it takes a restart.
fn overridden(row: Vec<Option<String>>) -> Option<Drift> {
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
}
