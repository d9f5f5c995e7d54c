//! What a request wants an instance to be, checked.

use secrecy::SecretString;
use serde_json::{Map, Value};
use toygres_client::resources::InstanceManifest;
use toygres_models::{InstanceOptions, Invalid, Labels, Password, PlatformName, PostgresVersion, StorageSize};

/// What a document asks for, checked.
pub struct Wanted {
    pub(super) platform: Option<PlatformName>,
    pub(super) version: Option<PostgresVersion>,
    pub(super) storage: Option<StorageSize>,
    pub(super) options: InstanceOptions,
    pub(super) labels: Option<Labels>,
    pub(super) delete_protection: Option<bool>,
    pub(super) password: Option<SecretString>,
    /// All fields that the document names, but its name, namespace and password.
    pub(super) named: Map<String, Value>,
}

impl Wanted {
    /// Checks each field by itself.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn check(body: &InstanceManifest) -> Result<Self, Invalid> {
        let options = InstanceOptions {
            use_load_balancer: body.use_load_balancer.unwrap_or_default(),
            dns_label: body.dns_label.as_deref().map(str::parse).transpose()?,
            cpu: body.cpu.as_deref().map(str::parse).transpose()?,
            memory: body.memory.as_deref().map(str::parse).transpose()?,
            storage_class: body.storage_class.as_deref().map(str::parse).transpose()?,
        };
        if options.dns_label.is_some() && !options.use_load_balancer {
            return Err(Invalid::new("dns_label", "needs use_load_balancer (--public): a private instance has no public name"));
        }
        let password = body.password.as_deref();
        Ok(Self {
            platform: body.platform.as_deref().map(str::parse).transpose()?,
            version: body.postgres_version.as_deref().map(str::parse).transpose()?,
            storage: body.storage_size_gb.map(StorageSize::try_from).transpose()?,
            options,
            labels: body.labels.clone().map(Labels::try_from).transpose()?,
            delete_protection: body.delete_protection,
            password: password.map(|password| Password::check_literal(password).map(|()| password.into())).transpose()?,
            named: named_fields(body),
        })
    }
}

/// The fields that a document names, but its name, namespace and password.
pub(super) fn named_fields(body: &InstanceManifest) -> Map<String, Value> {
    let open = InstanceManifest { password: None, namespace: None, ..body.clone() };
    let mut fields = match serde_json::to_value(open) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.remove("name");
    fields
}
