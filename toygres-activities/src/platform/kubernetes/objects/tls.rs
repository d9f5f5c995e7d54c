//! The server's certificate: for all the names that the instance is reached by, made anew when one
//! is missing, when half of its life is over, or when the CA is another one.

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use toygres_models::{Failure, InstanceKey};

use super::manifests::Manifests;
use crate::platform::certificates::RENEW_AFTER;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{Names, sha256_hex};

const FOR_NAMES: &str = "toygres.io/certificate-names";
const RENEW_AT: &str = "toygres.io/certificate-renew-at";
/// The digest of certificate and key, which has 256 bits that nobody guesses.
const ISSUED: &str = "toygres.io/certificate-sha256";
const SIGNED_BY: &str = "toygres.io/certificate-authority";
pub(in crate::platform::kubernetes) const AZURE_LABEL: &str = "service.beta.kubernetes.io/azure-dns-label-name";

/// The name of an instance inside the cluster.
pub(in crate::platform::kubernetes) fn internal_name(key: &InstanceKey, domain: &str) -> String {
    format!("{}.{}.svc.{domain}", key.name, key.namespace)
}

/// The address that a load balancer gave: an IP or a host name.
pub(in crate::platform::kubernetes) fn external_address(service: &Service) -> Option<String> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    ingress.ip.clone().or_else(|| ingress.hostname.clone())
}

impl Cluster {
    /// `<label>.<region>.cloudapp.azure.com`, where a label was asked for and the nodes say where
    /// they are.
    pub(in crate::platform::kubernetes) async fn public_name(&self, service: &Service) -> Result<Option<String>, Failure> {
        let label = service.metadata.annotations.as_ref().and_then(|annotations| annotations.get(AZURE_LABEL));
        let Some(label) = label else { return Ok(None) };
        let nodes: Api<Node> = Api::all(self.client.raw());
        let nodes = self.client.call("read the nodes' region", nodes.list_metadata(&ListParams::default().limit(1))).await?;
        let labels = nodes.items.first().and_then(|node| node.metadata.labels.as_ref());
        let region = labels.and_then(|labels| labels.get("topology.kubernetes.io/region"));
        Ok(region.map(|region| format!("{label}.{region}.cloudapp.azure.com")))
    }

    /// All names by which a client may reach the instance.
    async fn names(&self, key: &InstanceKey, service: &Service) -> Result<Vec<String>, Failure> {
        let (name, namespace) = (&key.name, &key.namespace);
        let mut names = vec![
            name.to_string(),
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            internal_name(key, &self.config.cluster_domain),
            // For clients that come by port-forward.
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let addresses = service.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        names.extend(addresses.into_iter().filter(|address| address != "None"));
        names.extend(external_address(service));
        names.extend(self.public_name(service).await?);
        Ok(names)
    }

    /// Gives the instance a certificate where `found` isn't one that will do. `true` if the Secret
    /// was made by that.
    pub(in crate::platform::kubernetes) async fn certify(
        &self,
        key: &InstanceKey,
        service: &Service,
        found: Option<&ObjectMeta>,
    ) -> Result<bool, Failure> {
        let names = self.names(key, service).await?;
        let signer = self.ca.fingerprint();
        if found.is_some_and(|found| will_do(found, &names, signer, Utc::now())) && self.has_issued_certificate(key).await? {
            return Ok(false);
        }
        let issued = self.ca.issue(names.iter().map(String::as_str))?;
        let notes = [
            (FOR_NAMES, names.join(",")),
            (RENEW_AT, (Utc::now() + RENEW_AFTER).to_rfc3339()),
            (SIGNED_BY, signer.to_owned()),
            (ISSUED, digest(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())),
        ];
        let (_, created) = self.client.put_ours(key, Manifests::new(key).tls(&issued, notes)?, found).await?;
        Ok(created)
    }

    /// Whether the Secret holds what was issued, certificate and key. Who changes it is found by that, not kept from it.
    pub(super) async fn has_issued_certificate(&self, key: &InstanceKey) -> Result<bool, Failure> {
        let name = Names::of(key).tls;
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let found = self.client.call(format!("read the Secret {}/{name}", key.namespace), secrets.get_opt(&name)).await?;
        let Some(found) = found else { return Ok(false) };
        let entry = |name: &str| found.data.as_ref().and_then(|data| data.get(name)).map_or(&[][..], |entry| &entry.0);
        let noted = found.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ISSUED));
        Ok(noted.is_none_or(|noted| *noted == digest(entry("tls.crt"), entry("tls.key"))))
    }

    /// Like [`certify`](Self::certify), for an instance that is there.
    pub(in crate::platform::kubernetes) async fn recertify(&self, key: &InstanceKey, service: &Service) -> Result<(), Failure> {
        let found = self.client.ours::<Secret>(key, &Names::of(key).tls).await?;
        self.certify(key, service, found.as_ref()).await.map(drop)
    }

    /// Whether a certificate is of the CA's generation that signs now.
    pub(in crate::platform::kubernetes) fn has_signed_last(&self, meta: &ObjectMeta) -> bool {
        signer_of(meta) == Some(self.ca.fingerprint())
    }

    /// Whether a certificate is this CA's.
    pub(in crate::platform::kubernetes) fn has_signed(&self, meta: &ObjectMeta) -> bool {
        signer_of(meta).is_some_and(|signer| self.ca.has_generation(signer))
    }
}

fn signer_of(meta: &ObjectMeta) -> Option<&str> {
    meta.annotations.as_ref()?.get(SIGNED_BY).map(String::as_str)
}

fn digest(chain_pem: &[u8], key_pem: &[u8]) -> String {
    sha256_hex(&[chain_pem, key_pem].concat())
}

/// When a certificate is to be made anew.
pub(in crate::platform::kubernetes) fn renew_at(meta: &ObjectMeta) -> Option<DateTime<Utc>> {
    let note = meta.annotations.as_ref()?.get(RENEW_AT)?;
    DateTime::parse_from_rfc3339(note).ok().map(Into::into)
}

fn will_do(found: &ObjectMeta, names: &[String], signer: &str, now: DateTime<Utc>) -> bool {
    let note = |name: &str| found.annotations.as_ref().and_then(|annotations| annotations.get(name)).map(String::as_str);
    let known: Vec<_> = note(FOR_NAMES).unwrap_or_default().split(',').collect();
    let young = renew_at(found).is_some_and(|renew_at| now < renew_at);
    young && note(SIGNED_BY) == Some(signer) && names.iter().all(|name| known.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_does_while_it_is_young_ours_and_for_all_names() {
        let now = Utc::now();
        let meta = |names: &str, days: i64| ObjectMeta {
            annotations: Some(
                [
                    (FOR_NAMES, names.to_owned()),
                    (RENEW_AT, (now + chrono::Duration::days(days)).to_rfc3339()),
                    (SIGNED_BY, "ca".to_owned()),
                ]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            ),
            ..ObjectMeta::default()
        };
        let names = ["demo".to_owned(), "10.0.0.1".to_owned()];
        assert!(will_do(&meta("x,demo,10.0.0.1", 1), &names, "ca", now));
        assert!(!will_do(&meta("demo", 1), &names, "ca", now), "an address has come since");
        assert!(!will_do(&meta("demo,10.0.0.1", -1), &names, "ca", now));
        assert!(!will_do(&meta("demo,10.0.0.1", 1), &names, "another ca", now));
        assert!(!will_do(&ObjectMeta::default(), &names, "ca", now));
    }
}
