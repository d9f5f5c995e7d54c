//! Requests that overlap each other.

use serde_json::{Value, json};
use tokio::task::JoinSet;
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::{Api, Toygres};

async fn all<T: Send + 'static>(futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    futures.into_iter().collect::<JoinSet<T>>().join_all().await
}

#[tokio::test]
async fn creates_of_one_name_at_once_make_one_instance() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let posts = (0..8).map(|_| {
        let api = api.clone();
        async move { api.post_instance(&json!({ "name": "demo", "storage_size_gb": 3 })).await }
    });
    let answers = all(posts).await;
    let ids: std::collections::BTreeSet<String> = answers
        .iter()
        .map(|answer| {
            let answer = answer.as_ref().unwrap();
            assert!([200, 202].contains(&answer.status.as_u16()), "{}", answer.text);
            answer.json().unwrap()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(ids.len(), 1, "more than one operation: {ids:?}");
    api.wait_success(ids.first().unwrap()).await.unwrap();
    toygres.only_postmaster("demo").await.unwrap();
    api.log_in("demo").await.unwrap();
    assert_eq!(api.items("/v1/instances").await.unwrap().len(), 1);
    assert_eq!(api.items("/v1/instances/demo/events").await.unwrap().len(), 2);
}

#[tokio::test]
async fn of_creates_of_one_name_with_different_passwords_one_wins_whole() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let posts = (0..4).map(|number| {
        let api = api.clone();
        async move { (number, api.post_instance(&json!({ "name": "demo", "password": format!("password-{number}") })).await) }
    });
    let answers = all(posts).await;
    let won: Vec<_> = answers.iter().filter(|(_, answer)| answer.as_ref().unwrap().status == 202).collect();
    let [(winner, answer)] = won[..] else { panic!("{} won: {answers:?}", won.len()) };
    for (number, loser) in &answers {
        if number != winner {
            loser.as_ref().unwrap().expect_problem(409).unwrap();
        }
    }
    api.wait_success(answer.as_ref().unwrap().json().unwrap()["id"].as_str().unwrap()).await.unwrap();
    assert!(api.uri("demo").await.unwrap().contains(&format!(":password-{winner}@")), "a loser's password was kept");
    api.log_in("demo").await.unwrap();
}

#[tokio::test]
async fn many_creates_at_once_all_work() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let name = |number: usize| format!("demo-{number}");
    let creates = (0..5).map(|number| {
        let api = api.clone();
        async move { api.create(&name(number)).await }
    });
    for created in all(creates).await {
        created.unwrap();
    }
    let mut ports = std::collections::BTreeSet::new();
    for number in 0..5 {
        toygres.only_postmaster(&name(number)).await.unwrap();
        let mut session = api.log_in(&name(number)).await.unwrap();
        let (directory, port): (String, String) =
            sqlx::query_as("SELECT current_setting('data_directory'), current_setting('port')")
                .fetch_one(&mut session)
                .await
                .unwrap();
        assert_eq!(directory, toygres.instance_dir(&name(number)).join("data").canonicalize().unwrap().to_string_lossy());
        assert!(ports.insert(port), "two instances have one port");
        let (checksums,): (String,) = sqlx::query_as("SHOW data_checksums").fetch_one(&mut session).await.unwrap();
        assert_eq!(checksums, "on");
    }
    let deletes = (0..5).map(|number| {
        let api = api.clone();
        async move { api.delete(&name(number)).await }
    });
    for deleted in all(deletes).await {
        deleted.unwrap();
    }
    for number in 0..5 {
        toygres.expect_nothing_of(&name(number)).await.unwrap();
    }
}

#[tokio::test]
async fn each_instance_is_a_cluster_of_its_own() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let mut identifiers = std::collections::BTreeSet::new();
    for name in ["one", "two"] {
        api.create(name).await.unwrap();
        let mut session = api.log_in(name).await.unwrap();
        let (identifier,): (i64,) =
            sqlx::query_as("SELECT system_identifier FROM pg_control_system()").fetch_one(&mut session).await.unwrap();
        assert!(identifiers.insert(identifier), "two instances share the system identifier {identifier}");
    }
}

async fn expect_overtaken(toygres: &Toygres, api: &Api, create: &str, delete: &str) -> anyhow::Result<()> {
    api.wait_success(delete).await?;
    let create = api.wait(create).await?;
    anyhow::ensure!(create["state"] == "failed", "an overtaken create did not fail: {create:#}");
    toygres.expect_nothing_of("demo").await
}

#[tokio::test]
async fn a_delete_overtakes_a_create_wherever_it_is() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    // Right behind it.
    let (create, delete) = (api.begin_create("demo").await.unwrap(), api.begin_delete("demo").await.unwrap());
    expect_overtaken(&toygres, &api, &create, &delete).await.unwrap();
    // In the middle of its steps.
    for (step, moment) in
        [("deploy-postgres", Moment::End), ("wait-for-ready", Moment::Begin), ("update-metadata", Moment::Begin)]
    {
        hold_up(&control, "demo", step, moment).await.unwrap();
        let create = api.begin_create("demo").await.unwrap();
        wait_held_up(&control, 1).await.unwrap();
        let delete = api.begin_delete("demo").await.unwrap();
        let_go(&control).await.unwrap();
        expect_overtaken(&toygres, &api, &create, &delete).await.unwrap();
    }
    // The name is as good as new.
    api.create("demo").await.unwrap();
    toygres.only_postmaster("demo").await.unwrap();
    api.log_in("demo").await.unwrap();
}

#[tokio::test]
async fn while_a_create_is_at_work_its_instance_says_so() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "demo", "wait-for-ready", Moment::Begin).await.unwrap();
    let create = api.begin_create("demo").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    assert_eq!(api.instance("demo").await.unwrap()["state"], "creating");
    let detail = api.get("/v1/instances/demo/connection").await.unwrap().expect_problem(409).unwrap();
    assert!(detail.contains("still being created"), "{detail}");
    let again = api.post_instance(&json!({ "name": "demo" })).await.unwrap().expect(200).unwrap();
    assert_eq!(again["id"], Value::from(create.as_str()), "the same create is the same operation");
    let_go(&control).await.unwrap();
    api.wait_success(&create).await.unwrap();
}

#[tokio::test]
async fn deletes_at_once_are_one_delete() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "demo", "delete-postgres", Moment::End).await.unwrap();
    let deletes = (0..4).map(|_| {
        let api = api.clone();
        async move { api.begin_delete("demo").await }
    });
    let ids: Vec<String> = all(deletes).await.into_iter().map(Result::unwrap).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    wait_held_up(&control, 1).await.unwrap();
    // Its password is gone by now, and so can't be compared.
    assert!(!toygres.secret_file("demo").exists());
    for body in [json!({ "name": "demo" }), json!({ "name": "demo", "password": "hunter2" })] {
        let create = api.post_instance(&body).await.unwrap().expect_problem(409).unwrap();
        assert!(create.contains("being deleted"), "{create}");
    }
    let_go(&control).await.unwrap();
    api.wait_success(&ids[0]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
    api.get("/v1/instances/demo").await.unwrap().expect_problem(404).unwrap();
}

#[tokio::test]
async fn lists_come_in_pages_that_miss_and_repeat_nothing() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    sqlx::query(
        "INSERT INTO toygres.instances (id, namespace, name, spec, generation)
         SELECT gen_random_uuid(), 'n' || i % 3, 'i' || i, $1, 1 FROM generate_series(1, 250) i",
    )
    .bind(json!({ "platform": "local", "postgres_version": "15.1" }))
    .execute(&control)
    .await
    .unwrap();
    let mut seen = Vec::new();
    let mut path = "/v1/instances?limit=100".to_owned();
    loop {
        let page = api.get(&path).await.unwrap().expect(200).unwrap();
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| format!("{}/{}", item["namespace"], item["name"])));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/instances?limit=100&cursor={cursor}");
    }
    let unique: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), unique.len()), (250, 250));
    assert_eq!(toygres.json(&["list"]).await.unwrap().as_array().unwrap().len(), 250);
}
