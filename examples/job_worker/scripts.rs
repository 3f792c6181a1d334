//! What has to happen in one piece in Redis. A job is in exactly one place at any moment: it leaves one and comes to another in the
//! same step, and whoever finds that it has left already changes nothing.

/// A job leaves the list of the thread that took it. KEYS: that list, the counters, queue, retry set, dead set.
/// ARGV: its text, the counter to raise or "", where it goes ("", "front", "retry", "dead"), its new text, and the milliseconds until
/// then (retry) or how many may lie there (dead). Whether it was there.
pub(crate) const MOVE: &str = r"
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then return 0 end
if ARGV[2] ~= '' then redis.call('HINCRBY', KEYS[2], ARGV[2], 1) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[3] == 'front' then
  redis.call('RPUSH', KEYS[3], ARGV[4])
elseif ARGV[3] == 'retry' then
  redis.call('ZADD', KEYS[4], now + ARGV[5], ARGV[4])
elseif ARGV[3] == 'dead' then
  redis.call('ZADD', KEYS[5], now, ARGV[4])
  redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -1 - ARGV[5])
end
return 1";

/// Jobs whose time has come go to the queue. KEYS: retry set, queue. How many.
pub(crate) const PROMOTE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
for _, job in ipairs(due) do
  redis.call('ZREM', KEYS[1], job)
  redis.call('LPUSH', KEYS[2], job)
end
return #due";

/// The owner of these lists lives. KEYS: the set of lists. ARGV: their names. One that its thread has forgotten stays forgotten.
pub(crate) const BEAT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, list in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', now, list) end
return #ARGV";

/// A list that nobody uses any more is forgotten, unless there is something in it. KEYS: the set of lists, the list. ARGV: its name.
pub(crate) const FORGET: &str = r"
if redis.call('LLEN', KEYS[2]) > 0 then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])";

/// A dead job is queued again. KEYS: dead set, queue. ARGV: its text, its new text. Whether it was there.
pub(crate) const REVIVE: &str = r"
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1";
