//! The installation's own Secret: what all replicas of a server that runs in the cluster share.
//!
//! Its keys are `token`, which clients of the server have to give, and certificate and key of each CA ([`Signs`]).
//! What is missing is made, by one request that only the first of several replicas gets through, so that all of them
//! end up with the same.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use toygres_models::{Failure, FailureKind, Invalid, Password};

use super::identity;
use crate::k8s_client::{FIELD_MANAGER, K8sClient};
use crate::platform::certificates::{CertificateAuthority, Signs};

const TOKEN: &str = "token";
const CAS: [Signs; 3] = [Signs::Instances, Signs::Clients, Signs::Api];
/// How often somebody else may be quicker. Each time, less is missing.
const ATTEMPTS: usize = 5;

type Data = BTreeMap<String, ByteString>;

/// What the installation's own Secret holds.
pub struct OwnSecret {
    /// What clients have to give.
    pub token: SecretString,
    /// What signs the instances' certificates.
    pub(crate) ca: CertificateAuthority,
    /// What signs those with which toygres logs in to them.
    pub(crate) client_ca: CertificateAuthority,
    /// What signs the API's.
    pub(crate) api_ca: CertificateAuthority,
}

impl OwnSecret {
    /// Reads the Secret `name`, made or completed where it has to be, and puts the certificates of
    /// its CAs into `folder` for clients to trust. Their keys are written to no file.
    ///
    /// # Errors
    /// If what it holds can't be used, which is then left as it is, or it can't be read or written.
    pub async fn open(client: &K8sClient, namespace: &str, name: &str, folder: &Path) -> Result<Self, Failure> {
        Self::check_name(name)?;
        if let Some(own) = CAS.map(Signs::key_file).into_iter().find(|key| folder.join(key).exists()) {
            let message = format!(
                "the folder {} has a CA of its own ({own}), and the one in the Secret {namespace}/{name} would be mixed with it; \
                 nothing was changed. Choose another folder: TOYGRES_CA_DIR",
                folder.display()
            );
            return Err(Failure::permanent(FailureKind::InvalidInput, message));
        }
        let place = format!("{namespace}/{name}");
        let secrets = client.api::<Secret>(namespace);
        for _ in 0..ATTEMPTS {
            let found = client.call(format!("read the Secret {place}"), secrets.get_opt(name)).await?;
            let annotations = found.as_ref().and_then(|found| found.metadata.annotations.as_ref());
            if let Some(owner) = annotations.and_then(|annotations| annotations.get(identity::INSTANCE)) {
                let message = format!("the Secret {place} belongs to the instance {owner}; name another one");
                return Err(Failure::permanent(FailureKind::Conflict, message));
            }
            let mut data = found.as_ref().and_then(|found| found.data.clone()).unwrap_or_default();
            let missing = missing(&data).map_err(|problem| unusable(&place, &problem))?;
            data.extend(missing.clone());
            // Nothing is written beside something that can't be used.
            let own = Self::read(&data, folder).map_err(|problem| unusable(&place, &problem))?;
            if missing.is_empty() || write(client, &secrets, name, found.as_ref(), missing).await? {
                let folder = folder.to_owned();
                return in_files(move || {
                    make_folder(&folder)?;
                    for ca in [&own.ca, &own.client_ca, &own.api_ca] {
                        ca.publish()?;
                    }
                    Ok(own)
                })
                .await;
            }
        }
        let message = format!("the Secret {place} was changed by somebody else each time that it was to be completed");
        Err(Failure::transient(FailureKind::Platform, message))
    }

    /// Whether it can be a Secret's name.
    ///
    /// # Errors
    /// If it can't.
    pub fn check_name(name: &str) -> Result<(), Invalid> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_label =
            |label: &str| !label.is_empty() && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-');
        if name.len() <= 253 && name.split('.').all(is_label) {
            return Ok(());
        }
        let shown: String = name.chars().take(40).collect();
        Err(Invalid::new("kube_secret", format!("{shown:?} is not a name of lowercase letters, digits, '-' and '.'")))
    }

    fn read(data: &Data, folder: &Path) -> Result<Self, String> {
        let token = text(data, TOKEN)?;
        // A person's editor may have ended it with a line break.
        let token = token.trim();
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("{TOKEN} has a character that no HTTP header can hold"));
        }
        let ca = |signs: Signs| {
            let (certificate, key) = (text(data, signs.certificate_file())?, text(data, signs.key_file())?);
            CertificateAuthority::from_pem(signs, &certificate, &key, folder.join(signs.certificate_file()))
        };
        let [ca, client_ca, api_ca] = [ca(Signs::Instances)?, ca(Signs::Clients)?, ca(Signs::Api)?];
        Ok(Self { token: token.into(), ca, client_ca, api_ca })
    }
}

fn unusable(place: &str, problem: &str) -> Failure {
    Failure::permanent(
        FailureKind::Platform,
        format!(
            "the Secret {place} can't be used: {problem}; nothing was changed. Restore it, or remove the key that is wrong \
             (of a CA both the certificate and the key) to have a new one made, which clients then have to be given"
        ),
    )
}

fn text(data: &Data, key: &str) -> Result<String, String> {
    let value = data.get(key).map(|value| value.0.clone()).unwrap_or_default();
    String::from_utf8(value).map_err(|_| format!("{key} is not text"))
}

/// New values for what is missing or empty, and a successor for each CA that ends within two years.
fn missing(data: &Data) -> Result<Data, String> {
    let lacks = |key: &str| data.get(key).is_none_or(|value| value.0.trim_ascii().is_empty());
    let mut missing = Data::new();
    let mut add = |key: &str, value: &str| missing.insert(key.to_owned(), ByteString(value.into()));
    if lacks(TOKEN) {
        add(TOKEN, Password::generate().expose_secret());
    }
    for signs in CAS {
        let (certificate_file, key_file) = (signs.certificate_file(), signs.key_file());
        match (lacks(certificate_file), lacks(key_file)) {
            (false, false) => {
                let (certificates, keys) = (text(data, certificate_file)?, text(data, key_file)?);
                if let Some((certificates, keys)) = CertificateAuthority::succeed(signs, &certificates, &keys)? {
                    add(certificate_file, &certificates);
                    add(key_file, &keys);
                }
            }
            (true, true) => {
                let (certificate, key) = CertificateAuthority::generate(signs).map_err(|failure| failure.message)?;
                add(certificate_file, &certificate);
                add(key_file, &key);
            }
            (true, false) => return Err(format!("it has {key_file} without {certificate_file}")),
            (false, true) => return Err(format!("it has {certificate_file} without {key_file}")),
        }
    }
    Ok(missing)
}

/// Makes the Secret, or adds to the one that was found. `false` if somebody else was quicker.
async fn write(
    client: &K8sClient,
    secrets: &Api<Secret>,
    name: &str,
    found: Option<&Secret>,
    data: Data,
) -> Result<bool, Failure> {
    let manager = Some(FIELD_MANAGER.to_owned());
    let call = async {
        let written = match found {
            None => {
                let labels = [(identity::MANAGED_BY, "toygres"), ("app.kubernetes.io/part-of", "toygres")];
                let metadata = ObjectMeta {
                    name: Some(name.to_owned()),
                    labels: Some(labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into()),
                    ..ObjectMeta::default()
                };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                secrets.create(&PostParams { field_manager: manager, ..PostParams::default() }, &secret).await
            }
            Some(found) => {
                let version = &found.metadata.resource_version;
                let patch = json!({ "metadata": { "resourceVersion": version }, "data": data });
                let params = PatchParams { field_manager: manager, ..PatchParams::default() };
                secrets.patch(name, &params, &Patch::Merge(patch)).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Made, changed or removed since the look; but a missing namespace is for the caller to hear of.
            Err(kube::Error::Api(status)) if status.code == 409 || (status.code == 404 && found.is_some()) => Ok(false),
            Err(error) => Err(error),
        }
    };
    client.call(format!("write the Secret {name}"), call).await
}

pub(super) fn make_folder(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|error| {
        Failure::permanent(FailureKind::Platform, format!("could not make the folder {}: {error}", folder.display()))
    })
}

/// Runs work on files where it may block.
pub(super) async fn in_files<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let cut_off = |error| Failure::transient(FailureKind::Internal, format!("file work was cut off: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(cut_off)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(values: &[(&str, &str)]) -> Data {
        values.iter().map(|(key, value)| ((*key).to_owned(), ByteString((*value).into()))).collect()
    }

    #[test]
    fn what_is_missing_is_made_and_the_rest_is_kept() {
        let folder = Path::new("/nonexistent");
        let all = missing(&Data::new()).unwrap();
        let pairs = CAS.iter().flat_map(|signs| [signs.certificate_file(), signs.key_file()]);
        let mut expected: Vec<_> = pairs.chain([TOKEN]).collect();
        expected.sort_unstable();
        assert_eq!(all.keys().collect::<Vec<_>>(), expected);
        let own = OwnSecret::read(&all, folder).unwrap();
        assert_eq!(own.token.expose_secret().len(), 32);
        assert_eq!(own.ca.certificate_path(), folder.join("ca.crt"));
        assert!(missing(&all).unwrap().is_empty());

        let mut only_token = data(&[(TOKEN, "mine\n"), ("ca.key", "")]);
        let added = missing(&only_token).unwrap();
        assert_eq!(added.len(), all.len() - 1);
        only_token.extend(added);
        assert_eq!(OwnSecret::read(&only_token, folder).unwrap().token.expose_secret(), "mine");
    }

    #[test]
    fn half_a_ca_and_a_wrong_one_are_refused_in_words_that_hold_no_secret() {
        let whole = missing(&Data::new()).unwrap();
        for lost in ["ca.crt", "ca.key", "client-ca.crt", "api-ca.key"] {
            let mut half = whole.clone();
            half.remove(lost);
            assert!(missing(&half).unwrap_err().contains(lost));
        }
        for (key, value) in [("client-ca.key", "find-me"), ("ca.crt", "find-me"), (TOKEN, "find me")] {
            let mut wrong = whole.clone();
            wrong.extend(data(&[(key, value)]));
            let problem = OwnSecret::read(&wrong, Path::new("")).err().unwrap();
            assert!(problem.contains(key) && !problem.contains("find"), "{problem}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!(OwnSecret::check_name("toygres.server-1").is_ok());
        for bad in ["", "A", "a/b", "-a", "a..b", &"a".repeat(254)] {
            assert!(OwnSecret::check_name(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
