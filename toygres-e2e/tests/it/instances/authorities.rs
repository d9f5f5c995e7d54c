//! CAs that come to their end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{Connection, Executor};
use toygres_e2e::{Api, Toygres};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The certificate of a CA with that name and key.
fn authority(name: &str, key: &KeyPair, ends: SystemTime) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (ends - DAY * 3650).into();
    params.not_after = ends.into();
    Ok(params.self_signed(key)?.pem())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

/// Logs in as the owner, trusting that CA alone.
async fn log_in(api: &Api, ca: &str) -> Result<()> {
    let options: PgConnectOptions = api.uri("demo").await?.parse()?;
    let trusting = options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert_from_pem(ca.into());
    let mut connection = PgConnection::connect_with(&trusting).await?;
    connection.execute("SELECT 1").await?;
    connection.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_ca_is_followed_by_another_and_whoever_trusts_either_gets_in_until_the_first_ends() {
    let toygres = Toygres::new().unwrap();
    let folder = toygres.state_dir().to_owned();
    std::fs::create_dir_all(&folder).unwrap();
    // Each ends in a month.
    let authorities = ["ca", "client-ca", "api-ca"].map(|name| (name, KeyPair::generate().unwrap()));
    let ends = SystemTime::now() + DAY * 30;
    for (name, key) in &authorities {
        write(&folder.join(format!("{name}.crt")), &authority(name, key, ends).unwrap(), 0o644).unwrap();
        write(&folder.join(format!("{name}.key")), &key.serialize_pem(), 0o600).unwrap();
    }
    let (first, first_key) = (authority("ca", &authorities[0].1, ends).unwrap(), &authorities[0].1);
    toygres.ok(&["create", "demo"]).await.unwrap();
    let api = toygres.api().unwrap();
    for (name, _) in &authorities {
        let trusted = std::fs::read_to_string(folder.join(format!("{name}.crt"))).unwrap();
        assert_eq!(trusted.matches("BEGIN CERTIFICATE").count(), 2, "{name} has no successor");
    }
    let both = std::fs::read_to_string(folder.join("ca.crt")).unwrap();
    let second = &both[both.rfind("-----BEGIN").unwrap()..];
    log_in(&api, &first).await.unwrap();
    log_in(&api, second).await.unwrap();
    let stranger = authority("ca", &KeyPair::generate().unwrap(), ends).unwrap();
    log_in(&api, &stranger).await.unwrap_err();
    let psql = ["psql", "demo", "--", "-Atc", "select ssl from pg_stat_ssl where pid = pg_backend_pid()"];
    assert_eq!(toygres.ok(&psql).await.unwrap().stdout.trim(), "t");

    // A month later.
    toygres.ok(&["server", "stop"]).await.unwrap();
    for (name, key) in &authorities {
        let path = folder.join(format!("{name}.crt"));
        let trusted = std::fs::read_to_string(&path).unwrap();
        let second = &trusted[trusted.rfind("-----BEGIN").unwrap()..];
        write(&path, &format!("{}{second}", authority(name, key, SystemTime::now() - DAY).unwrap()), 0o644).unwrap();
    }
    toygres.ok(&["restart", "demo"]).await.unwrap();
    let api = toygres.api().unwrap();
    log_in(&api, second).await.unwrap();
    log_in(&api, &authority("ca", first_key, SystemTime::now() - DAY).unwrap()).await.unwrap_err();
    assert_eq!(toygres.ok(&psql).await.unwrap().stdout.trim(), "t");
}
