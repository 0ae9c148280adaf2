//! Who may call: keys of clients, of tenants, of administrators.

use std::net::IpAddr;

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

/// The keys, as configured.
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
