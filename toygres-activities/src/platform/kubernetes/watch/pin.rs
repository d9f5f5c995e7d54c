//! What an instance runs is pinned: the image that its first pod really ran, by its digest where the node knows one.
//! A tag that has moved since changes nothing then. Where only a tag is known, another build under it is
//! noticed and told.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use toygres_models::{Failure, InstanceKey};

use super::readiness::{container, reference};
use crate::k8s_client::FIELD_MANAGER;
use crate::platform::PlatformEvent;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{self, MemberNames};

impl Cluster {
    /// Notes beside the data what the pod of an instance runs, if that is its first one, and pins its StatefulSet to it;
    /// of a later one, tells where it is another build. `claim` is its volume's.
    pub(in crate::platform::kubernetes) async fn pin_image(
        &self,
        key: &InstanceKey,
        pod: &Pod,
        claim: &ObjectMeta,
    ) -> Result<(), Failure> {
        let Some(status) = container(pod).filter(|status| !status.image_id.is_empty()) else { return Ok(()) };
        let noted = claim.annotations.as_ref().and_then(|annotations| annotations.get(identity::IMAGE_ID));
        if noted == Some(&status.image_id) {
            return Ok(());
        }
        if let Some(noted) = noted {
            let message = format!(
                "the image {} of {key} is another build than before: {}, and it was {noted}. The tag has moved, and the node \
                 knows no digest to pin it to",
                status.image, status.image_id
            );
            // Nobody may be listening.
            let _ = self.events.send(PlatformEvent { key: key.clone(), kind: "image_changed", message, healthy: true });
        } else {
            self.pin_set(key, reference(status)).await?;
        }
        let notes =
            BTreeMap::from([(identity::IMAGE, reference(status).to_owned()), (identity::IMAGE_ID, status.image_id.clone())]);
        self.client.annotate::<PersistentVolumeClaim>(key, claim, &notes).await
    }

    /// Makes the StatefulSet's next pod run `image`. The present one runs it already, and isn't restarted.
    async fn pin_set(&self, key: &InstanceKey, image: &str) -> Result<(), Failure> {
        let names = MemberNames::first(key);
        let Some(set) = self.client.ours::<StatefulSet>(key, &names.set).await? else { return Ok(()) };
        let containers = json!([{ "name": "postgres", "image": image }]);
        // The uid is a precondition.
        let patch = json!({ "metadata": { "uid": set.uid }, "spec": { "template": { "spec": { "containers": containers } } } });
        let sets = self.client.api::<StatefulSet>(key.namespace.as_str());
        let doing = format!("pin the image of the StatefulSet {key}");
        self.client
            .call(doing, sets.patch_metadata(&names.set, &PatchParams::apply(FIELD_MANAGER), &Patch::Strategic(patch)))
            .await?;
        Ok(())
    }
}
