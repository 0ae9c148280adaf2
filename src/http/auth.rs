//! Who may call: keys of clients, of tenants, of administrators. They can be replaced while requests are served.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use http::HeaderMap;
use smg_types::spec::Secret;

use super::Config;
use super::error::ApiError;
use super::headers::shown_key;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// The tenant whose key was shown.
    pub(super) tenant: Option<String>,
    /// A key of the router's own was asked for and shown: it is not for the workers.
    pub(super) key_is_ours: bool,
}

/// The keys that requests are held against now.
#[derive(Debug)]
pub struct LiveKeys(ArcSwap<Keys>);

/// New keys that are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeysRefused {
    /// Everybody would be let in.
    #[error("there is no key for clients any more, so that everybody would be let in: restart the router if you want that")]
    NoClientKey,
    /// The admin routes would be guarded by the address alone.
    #[error("there is no admin key any more, so that the admin routes would need none: restart the router if you want that")]
    NoAdminKey,
}

impl LiveKeys {
    /// The keys of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self(ArcSwap::from_pointee(Keys::new(config)))
    }

    /// Takes the keys of another configuration from now on, and says which have changed.
    ///
    /// # Errors
    /// If that would open what a key guards now: a file that was emptied by mistake must not. Nothing changes then.
    pub fn replace(&self, config: &Config) -> Result<Vec<&'static str>, KeysRefused> {
        self.swap(Keys::new(config))
    }

    fn swap(&self, new: Keys) -> Result<Vec<&'static str>, KeysRefused> {
        let now = self.0.load();
        if now.are_asked_for() && !new.are_asked_for() {
            return Err(KeysRefused::NoClientKey);
        }
        if now.admin.is_some() && new.admin.is_none() {
            return Err(KeysRefused::NoAdminKey);
        }
        let changed = [
            ("client keys", now.clients != new.clients),
            ("tenant keys", now.tenants != new.tenants),
            ("admin key", now.admin != new.admin),
        ];
        self.0.store(Arc::new(new));
        Ok(changed.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect())
    }

    /// Whether administrators have a key of their own.
    pub(super) fn has_admin(&self) -> bool {
        self.0.load().admin.is_some()
    }

    pub(super) fn load(&self) -> Guard<Arc<Keys>> {
        self.0.load()
    }
}

/// The keys of one configuration.
#[derive(Debug)]
pub(super) struct Keys {
    clients: Vec<Secret>,
    tenants: Vec<super::Tenant>,
    admin: Option<Secret>,
}

impl Keys {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            clients: config.api_keys.clone(),
            tenants: config.tenants.clone(),
            admin: config.admin_api_key.clone(),
        }
    }

    fn are_asked_for(&self) -> bool {
        !self.clients.is_empty() || !self.tenants.is_empty()
    }

    /// Lets a client in, or not.
    pub(super) fn client(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if !self.are_asked_for() {
            // An administrator's key is not for the workers either.
            let is_admin = |shown| self.admin.as_ref().is_some_and(|admin| admin.matches(shown));
            return Ok(Caller {
                tenant: None,
                key_is_ours: shown_key(headers).is_some_and(is_admin),
            });
        }
        let shown = shown_key(headers).ok_or_else(ApiError::unauthorized)?;
        // All keys are compared, so that the time tells nothing about which of them is near.
        let is_client = self.clients.iter().fold(false, |found, key| found | key.matches(shown));
        let tenant = self
            .tenants
            .iter()
            .rfind(|tenant| tenant.key.matches(shown))
            .map(|tenant| tenant.id.clone());
        if is_client || tenant.is_some() {
            Ok(Caller { tenant, key_is_ours: true })
        } else {
            Err(ApiError::unauthorized())
        }
    }

    /// Lets an administrator in, or not. Without an admin key but with client keys, only this machine is trusted.
    pub(super) fn admin(&self, headers: &HeaderMap, peer: IpAddr) -> Result<(), ApiError> {
        match &self.admin {
            Some(key) => match shown_key(headers) {
                Some(shown) if key.matches(shown) => Ok(()),
                Some(shown) if self.clients.iter().any(|client| client.matches(shown)) => {
                    Err(ApiError::forbidden("this needs the admin key"))
                }
                Some(_) | None => Err(ApiError::unauthorized()),
            },
            None if self.are_asked_for() => own_machine(peer),
            None => Ok(()),
        }
    }

    /// Lets in whoever may end the router: without an admin key, only this machine, whatever else is open.
    pub(super) fn operator(&self, headers: &HeaderMap, peer: IpAddr) -> Result<(), ApiError> {
        if self.admin.is_some() { self.admin(headers, peer) } else { own_machine(peer) }
    }
}

fn own_machine(peer: IpAddr) -> Result<(), ApiError> {
    if peer.to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(ApiError::forbidden("without an admin key this is for the router's own machine only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(clients: &[&str], tenants: &[(&str, &str)], admin: Option<&str>) -> Keys {
        Keys {
            clients: clients.iter().map(|key| Secret::new(*key)).collect(),
            tenants: tenants
                .iter()
                .map(|(id, key)| crate::http::Tenant {
                    id: (*id).to_owned(),
                    key: Secret::new(*key),
                })
                .collect(),
            admin: admin.map(Secret::new),
        }
    }

    fn shows(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            http::header::AUTHORIZATION,
            format!("Bearer {key}").parse().unwrap(),
        )])
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn keys_are_replaced_but_no_door_is_opened() {
        let live = |keys| LiveKeys(ArcSwap::from_pointee(keys));
        let open = live(keys(&[], &[], None));
        let live = live(keys(&["a"], &[], Some("root")));
        assert_eq!(live.swap(keys(&["a"], &[], Some("root"))), Ok(vec![]));
        assert_eq!(live.swap(keys(&["b"], &[], Some("root"))), Ok(vec!["client keys"]));
        assert!(live.load().client(&shows("b")).is_ok() && live.load().client(&shows("a")).is_err());
        assert_eq!(live.swap(keys(&[], &[], Some("root"))), Err(KeysRefused::NoClientKey));
        assert_eq!(live.swap(keys(&["c"], &[], None)), Err(KeysRefused::NoAdminKey));
        assert!(live.load().client(&shows("b")).is_ok(), "nothing has changed");
        let named = open.swap(keys(&["a"], &[("t", "c")], Some("root")));
        assert_eq!(named, Ok(vec!["client keys", "tenant keys", "admin key"]));
        assert!(open.load().client(&shows("x")).is_err());
    }

    #[test]
    fn without_keys_everyone_is_let_in_with_their_own() {
        let caller = keys(&[], &[], None).client(&shows("theirs")).unwrap();
        assert!(!caller.key_is_ours);
    }

    #[test]
    fn a_key_is_asked_for_when_there_is_one() {
        let keys = keys(&["a", "b"], &[("t", "c")], None);
        assert_eq!(keys.client(&HeaderMap::new()).unwrap_err().status, 401);
        assert_eq!(keys.client(&shows("x")).unwrap_err().status, 401);
        assert_eq!(keys.client(&shows("b")), Ok(Caller { tenant: None, key_is_ours: true }));
        assert_eq!(keys.client(&shows("c")).unwrap().tenant.as_deref(), Some("t"));
    }

    #[test]
    fn an_admin_is_somebody_else() {
        let keyed = keys(&["a"], &[], Some("root"));
        assert_eq!(keyed.admin(&shows("root"), THERE), Ok(()));
        assert_eq!(keyed.admin(&shows("a"), HERE).unwrap_err().status, 403);
        assert_eq!(keyed.admin(&HeaderMap::new(), HERE).unwrap_err().status, 401);
        let without = keys(&["a"], &[], None);
        assert_eq!(without.admin(&HeaderMap::new(), HERE), Ok(()));
        assert_eq!(without.admin(&HeaderMap::new(), THERE).unwrap_err().status, 403);
        assert_eq!(keys(&[], &[], None).admin(&HeaderMap::new(), THERE), Ok(()));
    }
}
