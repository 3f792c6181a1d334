//! What to change so that it fits.

use super::demand::Shape;
use super::limit::Limit;
use super::report::Standing;
use super::text::counted;

/// Each is enough by itself.
pub(super) fn all(standing: &Standing<'_>) -> Vec<String> {
    let Some(limit) = standing.tightest().map(Limit::to_be_had).filter(|_| standing.too_many() > 0) else {
        return Vec::new();
    };
    let plan = &standing.report.plan;
    let shape = plan.shape(standing.server());
    let fits = |shape: Shape| standing.demand_of(shape) <= limit;

    let pools = plan.pools().filter(|pool| pool.server() == standing.server()).count() as u64;
    let pooled = largest(pools, shape.pooled, |pooled| fits(Shape { pooled, ..shape }));
    let serving = largest(1, shape.serving, |serving| fits(Shape { serving, ..shape }));
    let hosts = largest(1, shape.hosts, |hosts| fits(Shape { hosts, ..shape }));

    let mut ways = Vec::new();
    ways.extend(pooled.filter(|_| pools > 0).map(|most| match pools {
        1 => format!("max_size of pool {:?} {} -> {most}", standing.server(), shape.pooled),
        _ => format!("max_size of the {pools} pools of {:?} together {} -> {most}", standing.server(), shape.pooled),
    }));
    ways.extend(serving.map(|most| format!("{} -> {most}", counted(shape.serving.into(), "worker"))));
    ways.extend(hosts.map(|most| format!("{} -> {most}", counted(shape.hosts.into(), "host"))));
    ways.push(larger_limits(standing));
    ways
}

/// All that are too small: to raise one of them alone would not do.
fn larger_limits(standing: &Standing<'_>) -> String {
    let worst = standing.demand().at_worst();
    let limits = standing.capacity().map_or(&[][..], |capacity| capacity.limits());
    let too_small = limits.iter().filter(|limit| limit.to_be_had() < worst);
    let larger: Vec<_> = too_small.map(|limit| format!("{} -> {}", limit.what(), limit.total_for(worst))).collect();
    larger.join(" and ")
}

/// A number that can be halved.
pub(super) trait Whole: Copy + Ord {
    /// The middle of two, rounded up.
    fn middle(self, above: Self) -> Self;
    fn before(self) -> Self;
}

macro_rules! whole {
    ($($kind:ty),*) => { $(
        impl Whole for $kind {
            fn middle(self, above: Self) -> Self {
                above - (above - self) / 2
            }
            fn before(self) -> Self {
                self - 1
            }
        }
    )* };
}
whole!(u32, u64);

/// The largest number from `least` to `most` that fits, where none fits that is larger than one which does not. `None`: not
/// even the least does.
pub(super) fn largest<N: Whole>(least: N, most: N, fits: impl Fn(N) -> bool) -> Option<N> {
    if least > most || !fits(least) {
        return None;
    }
    let (mut fitting, mut most) = (least, most);
    while fitting < most {
        let middle = fitting.middle(most);
        if fits(middle) {
            fitting = middle;
        } else {
            most = middle.before();
        }
    }
    Some(fitting)
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_that_fits_is_found() {
        for limit in 0..20_u32 {
            assert_eq!(largest(0, 12, |number| number <= limit), Some(limit.min(12)));
            assert_eq!(largest(0, u32::MAX, |number| number <= limit), Some(limit));
        }
        assert_eq!(largest(0, u32::MAX, |_| true), Some(u32::MAX));
        assert_eq!(largest(1, 5_u64, |_| false), None);
        assert_eq!(largest(5, 1_u64, |_| true), None);
    }
}
