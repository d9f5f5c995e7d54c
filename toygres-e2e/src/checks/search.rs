//! Looking for a password in everything that isn't its place: files, tables, processes, texts.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::PgPool;

/// All but the characters that RFC 3986 calls unreserved.
const IN_URI: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A secret in every form in which it could have been written down.
#[derive(Debug, Clone)]
pub struct Needles(BTreeSet<String>);

impl Needles {
    /// The forms of `secret`: as it is, percent-encoded, in JSON, in hex, and in base64 wherever
    /// it begins in the encoded text.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        let mut forms = BTreeSet::from([secret.to_owned()]);
        forms.insert(utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string());
        forms.insert(utf8_percent_encode(secret, IN_URI).to_string());
        forms.insert(serde_json::Value::from(secret).to_string().trim_matches('"').to_owned());
        forms.insert(secret.bytes().map(|byte| format!("{byte:02x}")).collect());
        for shift in 0..3 {
            forms.insert(base64_middle(secret.as_bytes(), shift));
        }
        Self(forms)
    }

    /// Makes an error of a secret in a text.
    ///
    /// # Errors
    /// Says where it is.
    pub fn absent_from(&self, place: &str, text: &str) -> Result<()> {
        let found = self.0.iter().find(|form| text.contains(*form));
        ensure!(found.is_none(), "the password is in {place}, as {:?}", found.map_or("", String::as_str));
        Ok(())
    }

    /// Makes an error of a secret in any file of a folder but in its part `secrets`.
    ///
    /// # Errors
    /// Names the files.
    pub fn absent_from_files(&self, folder: &Path) -> Result<()> {
        let mut child = Command::new("grep")
            .args(["-rlaF", "-f", "-", "--exclude-dir=secrets", "--"])
            .arg(folder)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("grep can't be run")?;
        let patterns: Vec<&str> = self.0.iter().map(String::as_str).collect();
        // By its input: its arguments are looked at by other tests at this moment.
        child.stdin.take().context("grep reads nothing")?.write_all(patterns.join("\n").as_bytes())?;
        let files = String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned();
        ensure!(files.is_empty(), "the password is in\n{files}");
        Ok(())
    }

    /// Makes an error of a secret in any row of any table, the system's own included.
    ///
    /// # Errors
    /// Names the table.
    pub async fn absent_from_tables(&self, database: &PgPool) -> Result<usize> {
        let tables: Vec<(String,)> = sqlx::query_as(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname <> 'information_schema'",
        )
        .fetch_all(database)
        .await?;
        for (table,) in &tables {
            let all = format!("SELECT t::text FROM {table} t");
            let rows: Vec<(String,)> = sqlx::query_as(&all).fetch_all(database).await?;
            for (row,) in rows {
                self.absent_from(&format!("the table {table}: {row}"), &row)?;
            }
        }
        Ok(tables.len())
    }

    /// Looks at every process's arguments and environment again and again, until told to stop.
    #[must_use]
    pub fn watch_processes(&self) -> ProcessWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let (needles, stopped) = (self.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                needles.absent_from_processes()?;
                looks += 1;
            }
            Ok(looks)
        });
        ProcessWatch { stop, thread }
    }

    fn absent_from_processes(&self) -> Result<()> {
        for process in std::fs::read_dir("/proc")?.flatten() {
            if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            for file in ["cmdline", "environ"] {
                // A process may end, or be somebody else's.
                let Ok(bytes) = std::fs::read(process.path().join(file)) else { continue };
                let text = String::from_utf8_lossy(&bytes);
                self.absent_from(&format!("{file} of a process: {}", text.replace('\0', " ")), &text)?;
            }
        }
        Ok(())
    }
}

/// A watch over all processes.
#[derive(Debug)]
pub struct ProcessWatch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<u64>>,
}

impl ProcessWatch {
    /// Whether it has ended by itself: it has seen the secret.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the watch; how often it looked.
    ///
    /// # Errors
    /// If the secret was seen.
    pub fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the watch broke")?
    }
}

/// The part of a secret's base64 that doesn't depend on what is around it, when it begins `shift`
/// bytes into a group of three.
fn base64_middle(secret: &[u8], shift: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let whole = secret.get((3 - shift) % 3..).unwrap_or_default();
    let mut text = String::new();
    for group in whole.chunks_exact(3) {
        let bits = group.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        text.extend([18, 12, 6, 0].map(|offset| char::from(DIGITS[bits >> offset & 63])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_whatever_form_it_was_written() {
        let needles = Needles::of("s3cr%t:pässword");
        for text in [
            "x s3cr%t:pässword x",
            "postgresql://u:s3cr%25t%3Ap%C3%A4ssword@h",
            "7333637225743a70c3a47373776f7264",
            // base64 of "ab" + the secret + "cd"
            "YWJzM2NyJXQ6cMOkc3N3b3JkY2Q=",
        ] {
            assert!(needles.absent_from("the text", text).is_err(), "{text}");
        }
        needles.absent_from("the text", "postgresql://u:secret@h").unwrap();
    }
}
