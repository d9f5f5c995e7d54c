//! What a superuser has an instance's server do.

use anyhow::Result;
use sqlx::{Executor, PgConnection};

/// What a shell's command prints that is run by the instance's server, errors too.
pub async fn program(session: &mut PgConnection, command: &str) -> Result<String> {
    session.execute("DROP TABLE IF EXISTS pg_temp.said; CREATE TEMP TABLE said (line text)").await?;
    let command = format!("{{ {command}\n}} 2>&1; true").replace('\'', "''");
    // No character of the text is a quote, a backslash that escapes, or a delimiter.
    session
        .execute(format!(r"COPY pg_temp.said FROM PROGRAM '{command}' (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')").as_str())
        .await?;
    let lines: Vec<Option<String>> = sqlx::query_scalar("SELECT line FROM pg_temp.said").fetch_all(session).await?;
    Ok(lines.into_iter().flatten().collect::<Vec<_>>().join("\n"))
}
