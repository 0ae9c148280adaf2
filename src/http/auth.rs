//! Access control: the keys of clients, tenants and administrators, and the rules without a key.
//!
//! The same rules apply to every port and path; docs/security.md has a table of them that is made from the routes:
//!
//! 1. Inference needs a client's or a tenant's key if any is configured; an admin key opens the lists of routers and events too.
//! 2. The admin surface needs an admin key. `--api-key` counts as one when no admin key is configured.
//! 3. Without any key that counts as an admin key, reads are open, and writes are for this machine only, unless
//!    `--admin-open` opens them.
//! 4. "This machine" is a loopback address without a sign of a proxy or of a page that another site served: a proxy on
//!    this machine makes everybody's address a loopback address.
//! 5. A write that a browser may have sent on behalf of another site is refused whatever it shows.
//!
//! The keys can be replaced at any time. A request is checked against those of its arrival until its end.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use smg_types::spec::Secret;

use super::error::ApiError;
use super::headers::{is_key, key_hash, shown_keys};
use super::origin::{Asked, own_machine, refuse_cross_site};
use super::routes::Access;
use super::{AdminKey, AdminRole, Config, Tenant};

/// The header of a request whose response shall show how it was routed.
pub(super) static X_SMG_DEBUG: HeaderName = HeaderName::from_static("x-smg-debug");

/// The identity of a caller: the tenant of its key, and a hash of the key (without configured keys, of the first one shown).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Caller {
    pub(super) tenant: Option<String>,
    pub(super) key: Option<u64>,
}

/// The keys against which new requests are checked.
#[derive(Debug)]
pub struct LiveKeys(ArcSwap<Keys>);

/// Why new keys are not applied: they would open what a key protects now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeysRefused {
    /// Every client would be admitted.
    #[error(
        "there is no key for clients any more, which would let everybody in: restart the router if you want that"
    )]
    NoClientKey,
    /// The admin routes would be less protected than now.
    #[error(
        "there is no key for administrators any more, which would open the admin routes: restart the router if you want that"
    )]
    NoAdminKey,
}

impl LiveKeys {
    /// The keys of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self(ArcSwap::from_pointee(Keys::new(config)))
    }

    /// Replaces the keys by those of another configuration, and returns the names of the kinds that have changed.
    ///
    /// # Errors
    /// If that would open what a key protects now, for example because a file was emptied by mistake. Nothing changes
    /// then.
    pub fn replace(&self, config: &Config) -> Result<Vec<&'static str>, KeysRefused> {
        self.swap(Keys::new(config))
    }

    /// Checks whether [`LiveKeys::replace`] would accept the keys of another configuration.
    ///
    /// # Errors
    /// If that would open what a key protects now.
    pub fn check(&self, config: &Config) -> Result<(), KeysRefused> {
        self.check_guards(&Keys::new(config))
    }

    fn check_guards(&self, new: &Keys) -> Result<(), KeysRefused> {
        let now = self.0.load();
        if now.guard_clients() && !new.guard_clients() {
            return Err(KeysRefused::NoClientKey);
        }
        if now.admin_guard() > new.admin_guard() {
            return Err(KeysRefused::NoAdminKey);
        }
        Ok(())
    }

    fn swap(&self, new: Keys) -> Result<Vec<&'static str>, KeysRefused> {
        self.check_guards(&new)?;
        let now = self.0.load();
        let changed = [
            ("client keys", now.clients != new.clients),
            ("tenant keys", now.tenants != new.tenants),
            ("admin keys", now.admins != new.admins),
        ];
        // Whether admin writes are open without a key is decided at the start.
        self.0.store(Arc::new(Keys { open: now.open, ..new }));
        Ok(changed.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect())
    }

    /// The keys for a request that arrives now.
    pub(super) fn load(&self) -> Arc<Keys> {
        self.0.load_full()
    }
}

/// The keys of one configuration.
#[derive(Debug)]
pub(super) struct Keys {
    clients: Vec<Secret>,
    tenants: Vec<Tenant>,
    admins: Vec<AdminKey>,
    /// Whether admin writes need no key if none is configured.
    open: bool,
}

impl Keys {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            clients: config.api_keys.clone(),
            tenants: config.tenants.clone(),
            admins: config.admin_api_keys.clone(),
            open: config.admin_open,
        }
    }

    /// Whether clients need a key.
    fn guard_clients(&self) -> bool {
        !self.clients.is_empty() || !self.tenants.is_empty()
    }

    /// How strongly the admin routes are protected; a greater number is stronger.
    fn admin_guard(&self) -> u8 {
        match (self.admins.is_empty(), self.clients.is_empty()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// Whether administrators have keys of their own.
    pub(super) fn have_admins(&self) -> bool {
        !self.admins.is_empty()
    }

    /// Admits a client or returns the error. Each credential that it sends is tried.
    pub(super) fn client(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if !self.guard_clients() {
            return Ok(Caller { tenant: None, key: shown_keys(headers).next().map(key_hash) });
        }
        let mut found = None;
        // All keys are compared, so that the time does not reveal which of them is similar.
        for shown in shown_keys(headers) {
            let is_client = is_one_of(&self.clients, shown);
            let tenant = self.tenants.iter().rfind(|tenant| tenant.key.matches(shown));
            if found.is_none() && (is_client || tenant.is_some()) {
                let tenant = tenant.map(|tenant| tenant.id.clone());
                found = Some(Caller { tenant, key: Some(key_hash(shown)) });
            }
        }
        found.ok_or_else(ApiError::unauthorized)
    }

    /// Admits the caller of a route, or returns the error. `None`: everybody may call it.
    pub(super) fn caller(
        &self,
        access: Access,
        asked: &Asked<'_>,
    ) -> Result<Option<Caller>, ApiError> {
        match access {
            Access::Public => Ok(None),
            Access::Client => self.client(asked.headers).map(Some),
            Access::Reader => self.reader(asked).map(Some),
            Access::Admin | Access::Inspect | Access::Operator => {
                self.admin(access, asked).map(|()| Some(Caller::default()))
            }
        }
    }

    /// Admits a client, or whoever has an admin key, or returns the error.
    fn reader(&self, asked: &Asked<'_>) -> Result<Caller, ApiError> {
        let headers = asked.headers;
        self.client(headers).or_else(|refused| {
            let admits = !self.admins.is_empty() && self.with_admin_key(false, headers).is_ok();
            admits.then(Caller::default).ok_or(refused)
        })
    }

    /// Admits the caller of an admin route or returns the error.
    pub(super) fn admin(&self, access: Access, asked: &Asked<'_>) -> Result<(), ApiError> {
        let headers = asked.headers;
        let reads = matches!(*asked.method, Method::GET | Method::HEAD);
        let writes = !reads && access != Access::Inspect;
        if writes {
            refuse_cross_site(headers)?;
        }
        if !self.admins.is_empty() {
            return self.with_admin_key(writes, headers);
        }
        // Shutting the router down and changing the keys of the mesh are not allowed to clients.
        if access == Access::Operator {
            return own_machine(asked);
        }
        if !self.clients.is_empty() {
            // All keys are compared, for a constant time.
            let known = shown_keys(headers)
                .fold(false, |known, shown| known | is_one_of(&self.clients, shown));
            return if known { Ok(()) } else { Err(ApiError::unauthorized()) };
        }
        if writes && !self.open { own_machine(asked) } else { Ok(()) }
    }

    /// Whether the response shows how the request was routed, because it asks for it with the header `x-smg-debug`.
    ///
    /// # Errors
    /// If the header is neither `true` nor `false`, or the caller may not read which workers there are.
    pub(super) fn shows_routing(&self, asked: &Asked<'_>) -> Result<bool, ApiError> {
        let Some(value) = asked.headers.get(&X_SMG_DEBUG) else { return Ok(false) };
        match value.as_bytes() {
            b"true" => self.admin(Access::Inspect, asked).map(|()| true).map_err(|_| {
                ApiError::forbidden(
                    "the header x-smg-debug needs a key that may read the admin routes",
                )
            }),
            b"false" => Ok(false),
            _ => Err(ApiError {
                param: Some("x-smg-debug"),
                ..ApiError::bad_request("invalid_header", "x-smg-debug is neither true nor false")
            }),
        }
    }

    fn with_admin_key(&self, writes: bool, headers: &HeaderMap) -> Result<(), ApiError> {
        let mut role = None;
        let mut is_client = false;
        for shown in shown_keys(headers) {
            for admin in &self.admins {
                if admin.key.matches(shown) {
                    role = role.max(Some(admin.role));
                }
            }
            is_client |= is_one_of(&self.clients, shown);
            is_client |= self.tenants.iter().fold(false, |is, own| is | own.key.matches(shown));
        }
        match role {
            Some(AdminRole::Admin) => Ok(()),
            Some(AdminRole::User) if !writes => Ok(()),
            Some(AdminRole::User) => {
                Err(ApiError::forbidden("this needs an admin key of the role admin"))
            }
            None if is_client => Err(ApiError::forbidden("this needs an admin key")),
            None => Err(ApiError::unauthorized()),
        }
    }

    /// Removes the router's own keys from the headers, because workers must not receive them. Other credentials stay.
    pub(super) fn take_own(&self, headers: &mut HeaderMap) {
        for name in [header::AUTHORIZATION, HeaderName::from_static("x-api-key")] {
            if !headers.get_all(&name).iter().any(|value| self.is_own(&name, value)) {
                continue;
            }
            let others: Vec<HeaderValue> =
                headers.get_all(&name).iter().filter(|v| !self.is_own(&name, v)).cloned().collect();
            headers.remove(&name);
            for value in others {
                headers.append(name.clone(), value);
            }
        }
    }

    fn is_own(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        let Some(shown) = is_key(name, value) else { return false };
        let mut own = is_one_of(&self.clients, shown);
        own |= self.tenants.iter().fold(false, |is, tenant| is | tenant.key.matches(shown));
        own | self.admins.iter().fold(false, |is, admin| is | admin.key.matches(shown))
    }
}

fn is_one_of(keys: &[Secret], shown: &[u8]) -> bool {
    keys.iter().fold(false, |found, key| found | key.matches(shown))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::LazyLock;

    use http::Version;
    use http::uri::Authority;

    use super::*;
    use crate::http::origin::FORWARDED;

    fn keys(clients: &[&str], tenants: &[(&str, &str)], admins: &[(&str, AdminRole)]) -> Keys {
        let tenant =
            |(id, key): &(&str, &str)| Tenant { id: (*id).to_owned(), key: Secret::new(*key) };
        Keys {
            clients: clients.iter().map(|key| Secret::new(*key)).collect(),
            tenants: tenants.iter().map(tenant).collect(),
            admins: admins
                .iter()
                .map(|(key, role)| AdminKey {
                    id: "a".to_owned(),
                    role: *role,
                    key: Secret::new(*key),
                })
                .collect(),
            open: false,
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn shows(key: &str) -> HeaderMap {
        headers(&[("authorization", &format!("Bearer {key}"))])
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn status(answer: Result<(), ApiError>) -> u16 {
        answer.map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    static LOCALHOST: LazyLock<Authority> = LazyLock::new(|| Authority::from_static("localhost:1"));

    fn asked<'a>(method: &'a Method, headers: &'a HeaderMap, peer: IpAddr) -> Asked<'a> {
        Asked { method, headers, version: Version::HTTP_11, authority: Some(&LOCALHOST), peer }
    }

    #[track_caller]
    fn check(keys: &Keys, (method, sent, peer): (Method, HeaderMap, IpAddr), wanted: u16) {
        let seen = status(keys.admin(Access::Admin, &asked(&method, &sent, peer)));
        assert_eq!(seen, wanted, "{method} {sent:?} from {peer}");
    }

    #[test]
    fn keys_are_replaced_but_nothing_is_opened() {
        let live = |keys| LiveKeys(ArcSwap::from_pointee(keys));
        let root = [("root", AdminRole::Admin)];
        let guarded = live(keys(&["a"], &[], &root));
        let is_client = |key: &str| guarded.load().client(&shows(key)).is_ok();
        assert_eq!(guarded.swap(keys(&["a"], &[], &root)), Ok(vec![]));
        assert_eq!(guarded.swap(keys(&["b"], &[], &root)), Ok(vec!["client keys"]));
        assert!(is_client("b") && !is_client("a"));
        assert_eq!(guarded.swap(keys(&[], &[], &root)), Err(KeysRefused::NoClientKey));
        assert_eq!(guarded.swap(keys(&["c"], &[], &[])), Err(KeysRefused::NoAdminKey));
        assert!(is_client("b") && !is_client("c"), "nothing has changed");
        // A client's key protects the admin routes, too; a tenant's does not.
        let shared = live(keys(&["a"], &[], &[]));
        assert_eq!(shared.swap(keys(&[], &[("t", "c")], &[])), Err(KeysRefused::NoAdminKey));
        let open = live(Keys { open: true, ..keys(&[], &[], &[]) });
        let named = open.swap(keys(&["a"], &[("t", "c")], &root));
        assert_eq!(named, Ok(vec!["client keys", "tenant keys", "admin keys"]));
        assert!(open.load().client(&shows("x")).is_err() && open.load().open);
    }

    #[test]
    fn without_keys_everyone_is_let_in_and_keeps_their_own() {
        let keys = keys(&[], &[], &[]);
        assert!(keys.client(&shows("theirs")).is_ok());
        let mut sent = shows("theirs");
        keys.take_own(&mut sent);
        assert_eq!(sent, shows("theirs"));
    }

    #[test]
    fn each_credential_that_is_shown_is_tried() {
        let keys = keys(&["a", "b"], &[("t", "c")], &[]);
        assert_eq!(keys.client(&HeaderMap::new()).unwrap_err().status, 401);
        assert_eq!(keys.client(&shows("x")).unwrap_err().status, 401);
        let tenant = |pairs: &[(&str, &str)]| keys.client(&headers(pairs)).unwrap().tenant;
        assert_eq!(tenant(&[("x-api-key", "b"), ("authorization", "Bearer foreign")]), None);
        assert_eq!(
            tenant(&[("authorization", "Bearer foreign"), ("authorization", "Bearer a")]),
            None
        );
        assert_eq!(tenant(&[("authorization", "Bearer   c")]).as_deref(), Some("t"));
        let both = [("x-api-key", "foreign"), ("authorization", "bearer c ")];
        assert_eq!(tenant(&both).as_deref(), Some("t"));
    }

    #[test]
    fn only_our_keys_are_taken_out() {
        let keys = keys(&["a"], &[("t", "c")], &[("root", AdminRole::Admin)]);
        let mut sent = headers(&[
            ("authorization", "Bearer foreign"),
            ("authorization", "Bearer  root"),
            ("x-api-key", "c"),
        ]);
        keys.take_own(&mut sent);
        assert_eq!(sent, headers(&[("authorization", "Bearer foreign")]));
    }

    #[test]
    fn an_admin_key_is_asked_for_once_there_is_one() {
        let keyed = keys(
            &["client"],
            &[("t", "tenant")],
            &[("root", AdminRole::Admin), ("view", AdminRole::User)],
        );
        for (method, sent, wanted) in [
            (Method::POST, shows("root"), 200),
            (Method::GET, shows("root"), 200),
            (Method::GET, shows("view"), 200),
            (Method::POST, shows("view"), 403),
            (Method::GET, shows("client"), 403),
            (Method::GET, shows("tenant"), 403),
            (Method::GET, HeaderMap::new(), 401),
            (Method::POST, shows("x"), 401),
        ] {
            check(&keyed, (method.clone(), sent.clone(), THERE), wanted);
            check(&keyed, (method, sent, HERE), wanted);
        }
    }

    #[test]
    fn a_clients_key_counts_where_there_is_no_admin_key() {
        let keyed = keys(&["client"], &[("t", "tenant")], &[]);
        check(&keyed, (Method::POST, shows("client"), THERE), 200);
        check(&keyed, (Method::POST, shows("tenant"), THERE), 401);
        check(&keyed, (Method::GET, HeaderMap::new(), HERE), 401);
        let ends = |sent: &HeaderMap, peer| {
            status(keyed.admin(Access::Operator, &asked(&Method::POST, sent, peer)))
        };
        assert_eq!((ends(&shows("client"), THERE), ends(&HeaderMap::new(), HERE)), (403, 200));
    }

    #[test]
    fn without_any_key_writes_are_for_this_machine_only() {
        let mut open = keys(&[], &[], &[]);
        let none = HeaderMap::new;
        check(&open, (Method::GET, none(), THERE), 200);
        check(&open, (Method::POST, none(), THERE), 403);
        check(&open, (Method::DELETE, none(), HERE), 200);
        for name in &FORWARDED {
            check(&open, (Method::POST, headers(&[(name.as_str(), "1")]), HERE), 403);
        }
        let rebound = headers(&[("host", "evil.test"), ("origin", "http://evil.test")]);
        check(&open, (Method::POST, rebound, HERE), 403);
        let page = headers(&[("host", "localhost:1"), ("origin", "http://localhost:1")]);
        check(&open, (Method::POST, page, HERE), 200);
        for (host, wanted) in [
            ("localhost:30000", 200),
            ("127.0.0.1", 200),
            ("[::1]:30000", 200),
            ("0.0.0.0:30000", 200),
            ("api.example.com", 403),
            ("10.0.0.1:30000", 403),
            ("", 403),
        ] {
            check(&open, (Method::POST, headers(&[("host", host)]), HERE), wanted);
        }
        let sent = none();
        let old = Asked { version: Version::HTTP_10, ..asked(&Method::POST, &sent, HERE) };
        let nameless = Asked { authority: None, ..asked(&Method::POST, &sent, HERE) };
        for asked in [old, nameless] {
            assert_eq!(status(open.admin(Access::Admin, &asked)), 403);
        }
        open.open = true;
        check(&open, (Method::POST, none(), THERE), 200);
    }

    #[test]
    fn what_a_page_of_another_site_sends_is_refused() {
        let keyed = keys(&[], &[], &[("root", AdminRole::Admin)]);
        let with = |more: &[(&str, &str)]| {
            let mut all = vec![("authorization", "Bearer root"), ("host", "smg:8000")];
            all.extend(more);
            headers(&all)
        };
        let json = ("content-type", "application/json; charset=utf-8");
        for (more, wanted) in [
            (vec![json, ("content-length", "2")], 200),
            (vec![json, ("origin", "http://smg:8000")], 200),
            (vec![json, ("origin", "http://evil.test")], 403),
            (vec![json, ("origin", "null")], 403),
            (vec![json, ("sec-fetch-site", "cross-site")], 403),
            (vec![json, ("sec-fetch-site", "same-site")], 403),
            (vec![json, ("sec-fetch-site", "none")], 200),
            (vec![("content-type", "text/plain")], 415),
            (vec![("content-type", "application/x-www-form-urlencoded")], 415),
            (vec![("content-length", "2")], 415),
            (vec![("content-length", "0")], 200),
            (vec![], 200),
        ] {
            check(&keyed, (Method::POST, with(&more), THERE), wanted);
        }
        check(&keyed, (Method::GET, with(&[("origin", "http://evil.test")]), THERE), 200);
    }
}
