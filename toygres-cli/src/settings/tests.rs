use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Settings from flags, environment and a config file, for an ordinary user with a home folder.
fn resolve(flags: &[(&str, &str)], environment: &[(&str, &str)], file: Option<&str>) -> Result<Settings, SettingsError> {
    let home = tempfile::tempdir().unwrap();
    let mut variables: HashMap<String, OsString> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    variables.entry("HOME".into()).or_insert_with(|| home.path().into());
    if let Some(text) = file {
        let folder = home.path().join(".config/toygres");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.toml"), text).unwrap();
    }
    Settings::resolve_with(&parse_flags(flags), &|name| variables.get(name).cloned(), false)
}

fn parse_flags(flags: &[(&str, &str)]) -> SettingFlags {
    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        flags: SettingFlags,
    }
    let arguments = flags.iter().flat_map(|(flag, value)| [*flag, *value]).filter(|argument| !argument.is_empty());
    <Program as clap::Parser>::parse_from(std::iter::once("toygres").chain(arguments)).flags
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default() {
    let (flag, variable, file) = (("--pool-size", "3"), ("TOYGRES_POOL_SIZE", "4"), "pool_size = 5");
    assert_eq!(resolve(&[flag], &[variable], Some(file)).unwrap().server.pool_size, 3);
    assert_eq!(resolve(&[], &[variable], Some(file)).unwrap().server.pool_size, 4);
    assert_eq!(resolve(&[], &[], Some(file)).unwrap().server.pool_size, 5);
    assert_eq!(resolve(&[], &[], None).unwrap().server.pool_size, DEFAULT_POOL_SIZE);
    assert_eq!(resolve(&[], &[("TOYGRES_POOL_SIZE", "")], Some(file)).unwrap().server.pool_size, 5, "empty is unset");
}

#[test]
fn every_setting_is_a_flag_a_variable_and_a_key() {
    let values = [
        ("state_dir", "/s"),
        ("cache_dir", "/c"),
        ("database_url", "postgresql://u:hunter2@h/d"),
        ("listen", "127.0.0.1:9"),
        ("url", "http://h:1/"),
        ("token", "hunter2"),
        ("port_range", "2000-3000"),
        ("pool_size", "7"),
        ("ready_timeout_seconds", "20"),
        ("health_interval_seconds", "5"),
        ("default_version", "17"),
        ("log_format", "json"),
        ("run_as_user", "pg"),
        ("namespace", "team"),
        ("output", "yaml"),
    ];
    let flags: Vec<_> = values.map(|(key, value)| (format!("--{}", key.replace('_', "-")), value)).into();
    let flags: Vec<_> = flags.iter().map(|(flag, value)| (flag.as_str(), *value)).chain([("--quiet", "")]).collect();
    let variables: Vec<_> = values.map(|(key, value)| (format!("TOYGRES_{}", key.to_uppercase()), value)).into();
    let variables: Vec<_> =
        variables.iter().map(|(name, value)| (name.as_str(), *value)).chain([("TOYGRES_QUIET", "1")]).collect();
    let mut file: String = values.iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
    file.push_str("quiet = true\n");

    for settings in [resolve(&flags, &[], None), resolve(&[], &variables, None), resolve(&[], &[], Some(&file))] {
        let settings = settings.unwrap();
        assert_eq!(
            (settings.server.state_dir.as_path(), settings.server.cache_dir.as_path()),
            (Path::new("/s"), Path::new("/c"))
        );
        assert_eq!(settings.server.database_url.as_ref().unwrap().expose_secret(), "postgresql://u:hunter2@h/d");
        assert_eq!(settings.server.listen.unwrap().port(), 9);
        assert_eq!(settings.url.as_ref().unwrap().as_str(), "http://h:1/");
        assert_eq!(settings.token.as_ref().unwrap().expose_secret(), "hunter2");
        assert_eq!((settings.server.port_range.clone(), settings.server.pool_size), (2000..=3000, 7));
        assert_eq!((settings.server.ready_timeout.as_secs(), settings.server.health_interval.as_secs()), (20, 5));
        assert_eq!(settings.server.log_format, LogFormat::Json);
        let shown = |key: &str| settings.shown.iter().find(|setting| setting.key == key).unwrap().clone();
        assert_eq!(shown("pool_size").value.as_deref(), Some("7"));
        assert!(shown("pool_size").source.to_lowercase().contains("pool"), "{:?}", shown("pool_size"));
        assert_eq!(shown("cpu"), ShownSetting { key: "cpu".into(), value: None, source: "default".into() });
        assert!(!format!("{:?}", settings.shown).contains("hunter2"));
        assert_eq!(settings.server.default_version, Some("17".parse().unwrap()));
        assert_eq!(settings.server.run_as_user.as_deref(), Some("pg"));
        assert_eq!(settings.namespace_or_default().as_str(), "team");
        assert_eq!((settings.output, settings.quiet), (OutputFormat::Yaml, true));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}

#[test]
fn another_process_gets_the_same_server_settings_through_the_environment() {
    let file = "database_url = 'postgresql://h/d'\nlisten = '127.0.0.1:9'\nport_range = '2000-3000'\nrun_as_user = 'pg'\ntoken = 't'\nstate_dir = '~/x'";
    let first = resolve(&[], &[], Some(file)).unwrap();
    let environment = first.to_environment();
    let again = Settings::resolve_with(
        &SettingFlags::default(),
        // The config file of the first one is gone, so it isn't named again.
        &|wanted| {
            environment.iter().find(|(name, _)| *name == wanted && wanted != "TOYGRES_CONFIG").map(|(_, value)| value.clone())
        },
        false,
    )
    .unwrap();
    assert_eq!(format!("{:?}", first.server), format!("{:?}", again.server));
    assert!(again.server.token.is_some());
}

#[test]
fn a_bad_value_is_refused_with_the_place_it_was_given_in() {
    for (error, expected) in [
        (resolve(&[("--pool-size", "many")], &[], None), "--pool-size: \"many\""),
        (resolve(&[], &[("TOYGRES_PORT_RANGE", "9-1")], None), "the environment variable TOYGRES_PORT_RANGE: \"9-1\""),
        (resolve(&[], &[], Some("quiet = true\n\nlisten = 'localhost'")), "config.toml (line 3): \"localhost\""),
        (resolve(&[], &[], Some("quiet = true\nstatedir = '/x'")), "\"statedir\" in "),
        (resolve(&[], &[], Some("[server]\nlisten = '127.0.0.1:1'")), "\"server\" in "),
        (resolve(&[], &[], Some("quiet = true\nurl = [1]")), "text, a number or true/false is wanted"),
        (resolve(&[], &[], Some("quiet =")), "(line 1) is not valid TOML"),
        (resolve(&[("--config", "/nowhere/toygres.toml")], &[], None), "/nowhere/toygres.toml can't be read"),
        (resolve(&[], &[("HOME", "")], None), "HOME isn't set"),
        (resolve(&[("--run-as-user", "root")], &[], None), "can't run safely as root"),
        (resolve(&[("--url", "ftp://h")], &[], None), "--url"),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_error_never_repeats_a_secret() {
    for (setting, value) in
        [("database_url", "host=h password=hunter2"), ("token", "hunter2 \u{e9}"), ("url", "http://me:hunter2@h")]
    {
        let variable = format!("TOYGRES_{}", setting.to_uppercase());
        let by_file = format!("{setting} = {value:?}");
        let broken = format!("{setting} = {value:?} x");
        for error in
            [resolve(&[], &[(&variable, value)], None), resolve(&[], &[], Some(&by_file)), resolve(&[], &[], Some(&broken))]
        {
            let error = error.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}

#[test]
fn folders_default_to_the_systems_for_root_and_to_the_users_own_otherwise() {
    let flags = SettingFlags::default();
    let home = |name: &str| (name == "HOME").then(|| "/home/me".into());
    let mine = Settings::resolve_with(&flags, &home, false).unwrap();
    assert_eq!(mine.server.state_dir, Path::new("/home/me/.local/state/toygres"));
    assert_eq!(mine.server.cache_dir, Path::new("/home/me/.cache/toygres"));
    let xdg = |name: &str| match name {
        "XDG_STATE_HOME" => Some("/x".into()),
        "XDG_CACHE_HOME" => Some("not/absolute".into()),
        _ => home(name),
    };
    let mine = Settings::resolve_with(&flags, &xdg, false).unwrap();
    assert_eq!(mine.server.state_dir, Path::new("/x/toygres"));
    assert_eq!(mine.server.cache_dir, Path::new("/home/me/.cache/toygres"), "a relative XDG folder is ignored");
    let folders = Folders { environment: &home, is_root: true };
    assert_eq!(folders.default(DefaultFolder::State).unwrap(), Path::new("/var/lib/toygres"));
    assert_eq!(folders.default(DefaultFolder::Cache).unwrap(), Path::new("/var/cache/toygres"));
    assert_eq!(folders.config_file().unwrap(), Path::new("/etc/toygres/config.toml"));
}

#[test]
fn a_path_in_the_config_file_starts_at_home_or_at_the_files_folder() {
    let settings = resolve(&[], &[], Some("state_dir = '~/mine'\ncache_dir = 'cache'")).unwrap();
    assert!(settings.server.state_dir.is_absolute() && settings.server.state_dir.ends_with("mine"));
    assert!(settings.server.cache_dir.ends_with(".config/toygres/cache"));
}

#[test]
fn the_token_comes_from_the_nearer_source_be_it_itself_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "from-file\n").unwrap();
    let path = path.to_str().unwrap();
    let token = |settings: Result<Settings, _>| settings.unwrap().token.unwrap().expose_secret().to_owned();
    assert_eq!(token(resolve(&[("--token-file", path)], &[("TOYGRES_TOKEN", "t")], None)), "from-file");
    assert_eq!(token(resolve(&[], &[("TOYGRES_TOKEN", "t")], Some(&format!("token_file = {path:?}")))), "t");
}

#[test]
fn of_url_and_context_the_nearer_one_is_used_and_a_url_beside_a_context() {
    let folder = tempfile::tempdir().unwrap();
    let (config, file) = (folder.path().join("config.toml"), folder.path().join("contexts.toml"));
    let context = |url: &str, token: &str| Context { url: url.parse().unwrap(), token: token.into(), ca_certificate: None };
    let contexts = [("a", context("http://a/", "of-a")), ("b", context("http://b/", "of-b"))];
    let contexts = contexts.map(|(name, context)| (name.parse().unwrap(), context));
    let kept = Contexts { current: Some("a".parse().unwrap()), contexts: contexts.into() };
    Contexts::change(&file, |contexts| {
        *contexts = kept;
        Ok(())
    })
    .unwrap();
    let used = |flags: &[(&str, &str)], variables: &[(&str, &str)], text: &str| {
        std::fs::write(&config, text).unwrap();
        let flags: Vec<_> = [("--config", config.to_str().unwrap())].iter().chain(flags).copied().collect();
        let settings = resolve(&flags, variables, None).unwrap().with_context().unwrap();
        let token = settings.token.map(|token| token.expose_secret().to_owned());
        (settings.url.map(|url| url.to_string()).unwrap_or_default(), token.unwrap_or_default())
    };
    let pair = |url: &str, token: &str| (url.to_owned(), token.to_owned());
    assert_eq!(used(&[], &[], ""), pair("http://a/", "of-a"));
    assert_eq!(used(&[("--context", "b")], &[], ""), pair("http://b/", "of-b"));
    assert_eq!(used(&[], &[("TOYGRES_CONTEXT", "b")], ""), pair("http://b/", "of-b"));
    assert_eq!(used(&[("--context", "b")], &[("TOYGRES_URL", "http://u")], ""), pair("http://b/", "of-b"));
    assert_eq!(used(&[], &[("TOYGRES_CONTEXT", "b"), ("TOYGRES_URL", "http://u")], ""), pair("http://u/", ""));
    assert_eq!(used(&[], &[("TOYGRES_CONTEXT", "b")], "url = 'http://u'"), pair("http://b/", "of-b"));
    assert_eq!(used(&[], &[], "url = 'http://u'\ntoken = 't'"), pair("http://u/", "t"));
    assert_eq!(used(&[("--context", "local")], &[], "token = 't'"), pair("", "t"));
    // The config file's token is for the server that the file means.
    assert_eq!(used(&[], &[], "token = 't'"), pair("http://a/", "of-a"));
    assert_eq!(used(&[], &[("TOYGRES_TOKEN", "t")], ""), pair("http://a/", "t"));
    let unknown = resolve(&[("--config", config.to_str().unwrap()), ("--context", "c")], &[], None).unwrap().with_context();
    assert!(matches!(unknown, Err(ContextsError::Unknown(_))));
    assert!(resolve(&[("--context", "a b")], &[], None).unwrap_err().to_string().contains("--context"));
}

proptest! {
    #[test]
    fn port_ranges_read_back_and_nothing_panics(first: u16, last: u16, junk in "\\PC{0,12}") {
        let parsed = parse_port_range(&format!("{first}-{last}"));
        prop_assert_eq!(parsed.is_ok(), 1024 <= first && first <= last);
        if let Ok(range) = parsed {
            prop_assert_eq!(range.into_inner(), (first, last));
        }
        let _ = (parse_port_range(&junk), parse_listen(&junk), parse_url(&junk), parse_token(&junk), parse_user(&junk));
    }
}
