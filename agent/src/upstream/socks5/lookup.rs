//! Resolving a proxy's name: one getaddrinfo at a time, whatever many connects want to know.
//!
//! It runs on a thread that nothing can take back, so a pod that begins connects and gives them up must not have one for
//! each.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// What came of it; `None` while it is under way.
type Found = Option<Result<Arc<[SocketAddr]>, (io::ErrorKind, String)>>;

/// The lookups of one proxy's name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Lookups(Arc<Mutex<Option<watch::Receiver<Found>>>>);

impl Lookups {
    /// The addresses of `host`, from a lookup that began now or is under way. Nothing is kept of one that is over.
    pub(super) async fn find(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let name = host.to_owned();
        self.find_by(move || {
            std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), port)).map(Iterator::collect)
        })
        .await
    }

    async fn find_by(
        &self,
        resolve: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Arc<[SocketAddr]>> {
        let mut under_way = self.join(resolve);
        let found = under_way.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        match found {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err((kind, message))) => Err(io::Error::new(kind, message)),
            None => Err(io::Error::other("the lookup has no end")),
        }
    }

    fn join(
        &self,
        resolve: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> watch::Receiver<Found> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A sender that went without a word panicked; the next one begins anew.
        let joined = current.clone().filter(|found| found.borrow().is_none() && found.has_changed().is_ok());
        joined.unwrap_or_else(|| {
            let (sender, receiver) = watch::channel(None);
            *current = Some(receiver.clone());
            tokio::task::spawn_blocking(move || {
                let found = resolve().map(Arc::from).map_err(|error| (error.kind(), error.to_string()));
                sender.send_replace(Some(found));
            });
            receiver
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connects_share_the_lookup_under_way_even_if_all_give_up() {
        let lookups = Lookups::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let address = SocketAddr::from(([192, 0, 2, 1], 1080));
        let find = || {
            let (begun, wait, lookups) = (begun.clone(), wait.clone(), lookups.clone());
            tokio::spawn(async move {
                lookups
                    .find_by(move || {
                        begun.fetch_add(1, Ordering::SeqCst);
                        wait.lock().unwrap().recv().unwrap();
                        Ok(vec![address])
                    })
                    .await
            })
        };
        for _ in 0..100 {
            let abandoned = find();
            tokio::task::yield_now().await;
            abandoned.abort();
            assert!(abandoned.await.unwrap_err().is_cancelled());
        }
        let patient = [find(), find()];
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        for task in patient {
            assert_eq!(*task.await.unwrap().unwrap(), [address]);
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        go.send(()).unwrap();
        find().await.unwrap().unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 2, "an answer is not kept");
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_an_error() {
        Lookups::default().find("no host has spaces", 1080).await.unwrap_err();
        let found = Lookups::default().find("127.0.0.1", 1080).await.unwrap();
        assert_eq!(*found, [SocketAddr::from(([127, 0, 0, 1], 1080))]);
    }
}
