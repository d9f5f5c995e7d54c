//! Renewing certificates without anyone asking for it: long before they expire, whether or not
//! anybody looks at the instance.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use toygres_models::{Failure, InstanceKey};

use super::tls::renew_at;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{self, Names};

/// A certificate is due months before it expires, so an hour more or less is nothing.
const PERIOD: Duration = Duration::from_secs(60 * 60);
/// Of toygres's Secrets, those with a certificate.
const CERTIFICATES: &str = "type=kubernetes.io/tls";

/// Goes over all instances now, and then every hour until the platform ends.
pub(in crate::platform::kubernetes) async fn keep_renewing(cluster: Arc<Cluster>) {
    let mut ticks = tokio::time::interval(PERIOD);
    // After a suspension of the machine, once is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cluster.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(failure) = cluster.renew_all().await {
            tracing::warn!(error = %failure, "could not look for certificates that are due; the next look is in an hour");
        }
    }
}

impl Cluster {
    /// Renews what is due; how many that were. Another server may do the same: the certificate of
    /// whichever comes last is served.
    pub(in crate::platform::kubernetes) async fn renew_all(&self) -> Result<usize, Failure> {
        let now = Utc::now();
        let params = ListParams::default().labels(identity::ALL).fields(CERTIFICATES);
        let mut due = Vec::new();
        for secrets in self.places::<Secret>() {
            let list = self.client.call("list the certificates of toygres", secrets.list_metadata(&params)).await?;
            // Another toygres's are its own business: its clients trust another CA.
            let ours = list.items.iter().map(|object| &object.metadata).filter(|meta| self.has_signed(meta));
            due.extend(ours.filter(|meta| self.is_due(meta, now)).filter_map(identity::owner));
        }
        // It is no user's, and may be in a namespace that isn't served.
        due.extend(self.control.get().cloned());
        let mut renewed = 0;
        for key in due {
            match self.renew(&key, now).await {
                Ok(done) => renewed += usize::from(done),
                Err(failure) => {
                    tracing::warn!(instance.key = %key, error = %failure, "could not renew a certificate; the next attempt is in an hour");
                }
            }
        }
        Ok(renewed)
    }

    async fn renew(&self, key: &InstanceKey, now: DateTime<Utc>) -> Result<bool, Failure> {
        let _guard = self.lock(key).await;
        // Looked at again under the lock: an instance that was removed meanwhile gets none.
        let found = self.client.ours::<Secret>(key, &Names::of(key).tls).await?;
        let Some(found) = found.filter(|found| self.is_due(found, now)) else { return Ok(false) };
        let services = self.client.api::<Service>(key.namespace.as_str());
        let service = self.client.call(format!("read the Service of {key}"), services.get_opt(key.name.as_str())).await?;
        let Some(service) = service.filter(|service| identity::is_of(&service.metadata, key)) else { return Ok(false) };
        self.certify(key, &service, Some(&found)).await?;
        self.publish_authorities(key).await?;
        tracing::info!(instance.key = %key, "renewed the certificate");
        Ok(true)
    }

    /// Whether a certificate has come to half of its life, or is of an older generation of the CA.
    fn is_due(&self, certificate: &ObjectMeta, now: DateTime<Utc>) -> bool {
        renew_at(certificate).is_none_or(|renew_at| renew_at <= now) || !self.has_signed_last(certificate)
    }

    /// Writes the CAs' certificates into the ConfigMap, which the server reads, and into the Secret, which applications read. A CA
    /// and its successor both count for two years; in that time each instance's certificate is renewed sixteen times, and this with it.
    async fn publish_authorities(&self, key: &InstanceKey) -> Result<(), Failure> {
        let names = Names::of(key);
        let clients = json!({ "client-ca.crt": self.way_in.clients().trusted_pem() });
        self.client.put_entries::<ConfigMap>(key, &names.config, clients).await?;
        let servers = json!({ "ca.crt": ByteString(self.ca.trusted_pem().into()) });
        self.client.put_entries::<Secret>(key, &names.connection, servers).await
    }
}
