//! Connections, counted: how many there may be, how many of one peer, and which ones end when there are more.
//!
//! A connection without a request costs its peer nothing, so whoever opens thousands would shut everybody else out. When
//! there is no room, the connection ends that has been without a request for longest: who connects and sends a request is
//! served, however many wait to send theirs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The bits of an IPv6 address that a network is known by.
const NETWORK: u128 = !0 << 64;

/// Room for connections.
#[derive(Debug)]
pub struct Room {
    /// How many may be there.
    size: usize,
    /// How many of them may be one peer's.
    share: usize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    last_id: u64,
    taken: HashMap<u64, Taken>,
    /// How many places each peer has.
    peers: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Taken {
    peer: IpAddr,
    /// Since when no request is at work on it; `None` while one is.
    idle_since: Option<Instant>,
    ended: CancellationToken,
}

impl Room {
    /// Room for `size` connections, of which one peer may have `share`.
    #[must_use]
    pub fn new(size: usize, share: usize) -> Arc<Self> {
        Arc::new(Self { size, share, places: Mutex::default() })
    }

    /// A place for a peer's connection. Where there is none, the one that was without a request for longest ends: of this
    /// peer if it has its share, and otherwise of the peer that has most. `None` if all of those are at work.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = peer_of(peer);
        let mut places = self.lock();
        if places.peers.get(&peer).is_some_and(|count| *count >= self.share) {
            places.end_idle(peer)?;
        } else if places.taken.len() >= self.size {
            let most = places.peers.iter().max_by_key(|(_, count)| **count).map(|(peer, _)| *peer)?;
            places.end_idle(most)?;
        }
        places.last_id += 1;
        let (id, ended) = (places.last_id, CancellationToken::new());
        places.taken.insert(id, Taken { peer, idle_since: Some(Instant::now()), ended: ended.clone() });
        *places.peers.entry(peer).or_default() += 1;
        Some(Place { room: self.clone(), id, ended })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // Nothing panics while it is held, and what it guards is never half changed.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_idle_since(&self, id: u64, since: Option<Instant>) {
        if let Some(taken) = self.lock().taken.get_mut(&id) {
            taken.idle_since = since;
        }
    }
}

/// All addresses of this machine are one peer, and so are those of an IPv6 network: who is there has all of them.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address if address.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
        address => address,
    }
}

impl Places {
    /// Ends the connection of that peer that was without a request for longest.
    fn end_idle(&mut self, peer: IpAddr) -> Option<()> {
        let of_peer = self.taken.iter().filter(|(_, taken)| taken.peer == peer);
        let idle = of_peer.filter_map(|(id, taken)| Some((taken.idle_since?, *id)));
        let (_, longest) = idle.min()?;
        self.remove(longest).map(|taken| taken.ended.cancel())
    }

    fn remove(&mut self, id: u64) -> Option<Taken> {
        let taken = self.taken.remove(&id)?;
        if let Some(count) = self.peers.get_mut(&taken.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&taken.peer);
            }
        }
        Some(taken)
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    id: u64,
    ended: CancellationToken,
}

impl Place {
    /// Cancelled when the connection has to end.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Notes that a request is at work on the connection, until what it returns is dropped.
    pub fn begin_request(self: &Arc<Self>) -> AtWork {
        self.room.set_idle_since(self.id, None);
        AtWork { place: self.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().remove(self.id);
    }
}

/// A request that is at work on a connection.
#[derive(Debug)]
pub struct AtWork {
    place: Arc<Place>,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.place.room.set_idle_since(self.place.id, Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_longest_idle_connection_of_a_peer_with_its_share_makes_room() {
        let room = Room::new(10, 3);
        let places: Vec<_> = (0..3).map(|_| Arc::new(room.take(peer(1)).unwrap())).collect();
        let other = room.take(peer(2)).unwrap();
        // The first one is at work; the second one is idle for longest.
        let at_work = places[0].begin_request();
        let fourth = Arc::new(room.take(peer(1)).unwrap());
        let ended: Vec<bool> = places.iter().map(|place| place.ended().is_cancelled()).collect();
        assert_eq!(ended, [false, true, false]);
        assert!(!other.ended().is_cancelled() && !fourth.ended().is_cancelled());
        // One that has just had a request is idle for less long than those before.
        drop(at_work);
        let _fifth = room.take(peer(1)).unwrap();
        assert!(!places[0].ended().is_cancelled() && places[2].ended().is_cancelled());
    }

    #[test]
    fn when_all_room_is_taken_the_peer_with_most_gives_some() {
        let room = Room::new(4, 3);
        let many: Vec<_> = (0..3).map(|_| room.take(peer(1)).unwrap()).collect();
        let one = room.take(peer(2)).unwrap();
        let new = room.take(peer(3)).unwrap();
        assert!(many[0].ended().is_cancelled() && !one.ended().is_cancelled());
        // What has ended and is dropped later doesn't count twice.
        drop(many);
        drop((one, new));
        assert!(room.lock().taken.is_empty() && room.lock().peers.is_empty());
    }

    #[test]
    fn connections_with_requests_are_never_ended() {
        let room = Room::new(2, 1);
        let place = Arc::new(room.take(peer(1)).unwrap());
        let at_work = place.begin_request();
        assert!(room.take(peer(1)).is_none());
        drop(at_work);
        assert!(room.take(peer(1)).is_some());
        assert!(place.ended().is_cancelled());
    }

    #[test]
    fn who_has_many_addresses_is_one_peer() {
        let room = Room::new(10, 2);
        let [first, second, other] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|address| room.take(address.parse().unwrap()).unwrap());
        let _third = room.take("2001:db8::3".parse().unwrap()).unwrap();
        assert!(first.ended().is_cancelled() && !second.ended().is_cancelled() && !other.ended().is_cancelled());

        let first = room.take("127.0.0.1".parse().unwrap()).unwrap();
        let _second = room.take("::1".parse().unwrap()).unwrap();
        let _third = room.take("::ffff:127.9.9.9".parse().unwrap()).unwrap();
        assert!(first.ended().is_cancelled());
    }
}
