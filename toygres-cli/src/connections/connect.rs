//! `toygres connect`: how an instance is reached, in the forms that programs take.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use toygres_client::resources::Connection;
use toygres_models::{InstanceName, Namespace};

use super::route::{self, Login};
use crate::error::{CliError, Outcome};
use crate::output::interrupt::interrupted;
use crate::output::ui::Ui;
use crate::session::Session;
use crate::values::instance_name;

/// All but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A form to print a connection in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConnectFormat {
    /// postgresql://…, which libpq and what is built on it take, and many others
    Uri,
    /// PGHOST, PGPASSWORD and the like as shell exports
    Env,
    /// A psql command, ready to be pasted
    Psql,
    /// jdbc:postgresql://…, for Java
    Jdbc,
    /// Host=…;…, for Npgsql (.NET)
    Dotnet,
    /// A call of create_async_engine, for SQLAlchemy with asyncpg
    Sqlalchemy,
    /// A call of postgres(), for postgres.js
    PostgresJs,
    /// host=… …, for tokio-postgres and rust-postgres; the CA is given to their TLS connector
    TokioPostgres,
    /// Each part by itself
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres connect demo
  pg_dump \"$(toygres connect demo)\" > demo.sql
  eval \"$(toygres connect demo --format env)\"
  toygres connect demo --forward --port 5432     (on Kubernetes, from outside the cluster)

Every form holds the password: mind where it is shown and stored. A URI in a command's arguments
can be read by other users of the machine while the command runs; `env` and `toygres psql` avoid it.")]
pub struct Connect {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// The form to print
    #[arg(long, value_enum, default_value_t = ConnectFormat::Uri)]
    pub format: ConnectFormat,

    /// For admins: as the superuser postgres, with a new password that lets in for an hour; the one
    /// that was asked for before ends
    #[arg(long)]
    pub superuser: bool,

    /// On Kubernetes: forward a port of this machine to it, through the cluster's API server, until
    /// Ctrl-C
    #[arg(long)]
    pub forward: bool,

    /// The port to forward [default: any that is free]
    #[arg(long, value_name = "PORT", requires = "forward", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
}

pub async fn run(arguments: &Connect, session: &mut Session<'_>) -> Outcome {
    let key = session.key(arguments.name.clone());
    let ui = session.ui;
    let login = Login::asked(arguments.superuser);
    let route = match arguments.forward {
        true => route::forwarded(session, &key, login, arguments.port.unwrap_or(0)).await?,
        false => route::direct(session, &key, login).await?,
    };
    print(ui, arguments.format, &route.connection)?;
    if route.is_forwarded() {
        ui.note(format_args!("Forwarding until Ctrl-C, from 127.0.0.1:{} to {}.", route.connection.port, key.name));
        interrupted().await;
        ui.end_line();
    } else if route.connection.internal {
        let flags = Namespace::flag(key.namespace.as_str());
        ui.note(format_args!(
            "\n{} is known inside the cluster only. From here:\n  {}",
            route.connection.host,
            ui.err.cyan(format_args!("toygres connect{flags} {} --forward", key.name)),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(ui: &Ui, format: ConnectFormat, connection: &Connection) -> Result<(), CliError> {
    match format {
        ConnectFormat::Json => ui.print_json(connection),
        // `-o json` asks for the record too, if no form was named.
        ConnectFormat::Uri if !ui.is_for_people() => ui.print_record(connection),
        ConnectFormat::Uri => ui.print(&connection.uri),
        ConnectFormat::Env => ui.print(env(connection)),
        ConnectFormat::Psql => ui.print(format_args!("psql {}", shell_quoted(&connection.uri))),
        ConnectFormat::Jdbc => ui.print(jdbc(connection)),
        ConnectFormat::Dotnet => ui.print(dotnet(connection)),
        ConnectFormat::Sqlalchemy => ui.print(sqlalchemy(connection)),
        ConnectFormat::PostgresJs => ui.print(postgres_js(connection)),
        ConnectFormat::TokioPostgres => ui.print(tokio_postgres(connection)),
    }
}

/// libpq's environment variables, the password not among them
/// (<https://www.postgresql.org/docs/current/libpq-envars.html>).
pub fn libpq_variables(connection: &Connection) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("PGHOST", connection.host.clone()),
        ("PGPORT", connection.port.to_string()),
        ("PGUSER", connection.user.clone()),
        ("PGDATABASE", connection.database.clone()),
        ("PGSSLMODE", connection.sslmode.clone()),
        ("PGCHANNELBINDING", "require".into()),
    ];
    variables.extend(connection.ca_certificate_path.clone().map(|path| ("PGSSLROOTCERT", path)));
    variables
}

fn env(connection: &Connection) -> String {
    let mut variables = libpq_variables(connection);
    variables.push(("PGPASSWORD", connection.password.clone()));
    let lines: Vec<_> = variables.iter().map(|(name, value)| format!("export {name}={}", shell_quoted(value))).collect();
    lines.join("\n")
}

/// The driver decodes it like a form's field, where `+` would be a blank; here every one is `%2B`.
fn jdbc(connection: &Connection) -> String {
    let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let host = if connection.host.contains(':') { format!("[{}]", connection.host) } else { connection.host.clone() };
    let mut url = format!("jdbc:postgresql://{host}:{}/{}", connection.port, encode(&connection.database));
    let mut join = '?';
    for (name, value) in [
        ("user", Some(&connection.user)),
        ("password", Some(&connection.password)),
        ("sslmode", Some(&connection.sslmode)),
        ("channelBinding", Some(&"require".to_owned())),
        ("sslrootcert", connection.ca_certificate_path.as_ref()),
    ] {
        if let Some(value) = value {
            let _ = write!(url, "{join}{name}={}", encode(value));
            join = '&';
        }
    }
    url
}

/// A connection string of .NET: a value in double quotes, in which one is doubled
/// (<https://www.npgsql.org/doc/connection-string-parameters.html>).
fn dotnet(connection: &Connection) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut text = format!(
        "Host={};Port={};Database={};Username={};Password={};SSL Mode=VerifyFull;Channel Binding=Require",
        quoted(&connection.host),
        connection.port,
        quoted(&connection.database),
        quoted(&connection.user),
        quoted(&connection.password)
    );
    if let Some(path) = &connection.ca_certificate_path {
        let _ = write!(text, ";Root Certificate={}", quoted(path));
    }
    text
}

/// A URL without parameters, which drivers understand differently.
fn plain_url(scheme: &str, connection: &Connection) -> String {
    let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let Connection { host, port, user, password, database, .. } = connection;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    format!("{scheme}://{}:{}@{host}:{port}/{}", encode(user), encode(password), encode(database))
}

/// A text of Python and JavaScript alike.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn sqlalchemy(connection: &Connection) -> String {
    let cafile = connection.ca_certificate_path.as_deref().map(|path| format!("cafile={}", literal(path)));
    let url = literal(&plain_url("postgresql+asyncpg", connection));
    format!("create_async_engine({url}, connect_args={{\"ssl\": ssl.create_default_context({})}})", cafile.unwrap_or_default())
}

fn postgres_js(connection: &Connection) -> String {
    let ca = connection.ca_certificate_path.as_deref().map(|path| format!("{{ ca: fs.readFileSync({}) }}", literal(path)));
    let ssl = ca.unwrap_or_else(|| literal("verify-full"));
    format!("postgres({}, {{ ssl: {ssl} }})", literal(&plain_url("postgresql", connection)))
}

/// Its parser knows fewer parameters than libpq's
/// (<https://docs.rs/tokio-postgres/latest/tokio_postgres/config/struct.Config.html>).
fn tokio_postgres(connection: &Connection) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    let Connection { host, port, user, password, database, .. } = connection;
    let [host, user, password, database] = [host, user, password, database].map(|text| quoted(text));
    format!("host={host} port={port} user={user} password={password} dbname={database} sslmode=require channel_binding=require")
}

/// One word of a POSIX shell's command line, whatever is in the text.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use std::process::Command;

    use super::*;
    use crate::testing::connection;

    const ODD: &str = "p@:/?#%'\"\\ $";

    /// What a shell makes of `script`, with psql replaced by something that prints its arguments.
    fn run_in_shell(script: &str) -> String {
        let script = format!("psql() {{ printf '%s' \"$1\"; }}\n{script}");
        let output = Command::new("sh").args(["-euc", &script]).env_clear().output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_forms() {
        let connection = connection("s3cret");
        assert_eq!(
            env(&connection),
            "export PGHOST='127.0.0.1'\nexport PGPORT='20001'\nexport PGUSER='app'\nexport PGDATABASE='app'\n\
             export PGSSLMODE='verify-full'\nexport PGCHANNELBINDING='require'\nexport PGSSLROOTCERT='/a b/ca.crt'\nexport PGPASSWORD='s3cret'"
        );
        assert_eq!(
            jdbc(&connection),
            "jdbc:postgresql://127.0.0.1:20001/app?user=app&password=s3cret&sslmode=verify-full&channelBinding=require&sslrootcert=%2Fa%20b%2Fca.crt"
        );
        assert!(!format!("{:?}", libpq_variables(&connection)).contains("s3cret"));
        assert_eq!(
            dotnet(&connection),
            "Host=\"127.0.0.1\";Port=20001;Database=\"app\";Username=\"app\";Password=\"s3cret\";SSL Mode=VerifyFull;\
             Channel Binding=Require;Root Certificate=\"/a b/ca.crt\""
        );
        assert_eq!(
            sqlalchemy(&connection),
            "create_async_engine(\"postgresql+asyncpg://app:s3cret@127.0.0.1:20001/app\", \
             connect_args={\"ssl\": ssl.create_default_context(cafile=\"/a b/ca.crt\")})"
        );
        assert_eq!(
            postgres_js(&connection),
            "postgres(\"postgresql://app:s3cret@127.0.0.1:20001/app\", { ssl: { ca: fs.readFileSync(\"/a b/ca.crt\") } })"
        );
        assert_eq!(
            tokio_postgres(&connection),
            "host='127.0.0.1' port=20001 user='app' password='s3cret' dbname='app' sslmode=require channel_binding=require"
        );
    }

    #[test]
    fn an_odd_password_survives_the_shell() {
        let connection = connection(ODD);
        assert_eq!(run_in_shell(&format!("{}\nprintf '%s' \"$PGPASSWORD\"", env(&connection))), ODD);
        assert_eq!(run_in_shell(&format!("psql {}", shell_quoted(&connection.uri))), connection.uri);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_is_quoted_is_one_word_to_the_shell(text in "[^\\x00]{0,40}") {
            prop_assert_eq!(run_in_shell(&format!("psql {}", shell_quoted(&text))), text);
        }
    }

    #[test]
    fn an_odd_password_is_quoted_for_each_driver() {
        let connection = connection(ODD);
        assert!(dotnet(&connection).contains(r#"Password="p@:/?#%'""\ $""#), "{}", dotnet(&connection));
        assert!(tokio_postgres(&connection).contains(r#"password='p@:/?#%\'"\\ $'"#), "{}", tokio_postgres(&connection));
        assert!(plain_url("x", &connection).contains(":p%40%3A%2F%3F%23%25%27%22%5C%20%24@"), "{}", plain_url("x", &connection));
    }

    proptest! {
        /// Read as the driver does: parameters at `&`, name and value at the first `=`, both decoded
        /// as a form's field.
        #[test]
        fn any_password_comes_back_from_a_jdbc_url(password in "[^\\x00]{1,40}") {
            let url = jdbc(&connection(&password));
            let (_, query) = url.split_once('?').unwrap();
            let value = query.split('&').find_map(|pair| pair.strip_prefix("password=")).unwrap();
            let decoded = percent_decode_str(&value.replace('+', " ")).decode_utf8().unwrap().into_owned();
            prop_assert_eq!(decoded, password);
        }
    }
}
