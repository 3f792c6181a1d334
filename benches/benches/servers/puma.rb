# The same handler for Puma: one GET through a pool. What it is to be is in the environment, as for the others.
require "connection_pool"
require "redis"

bind "tcp://#{ENV.fetch("BENCH_ADDRESS")}"
workers Integer(ENV.fetch("BENCH_WORKERS"))
threads(*[Integer(ENV.fetch("BENCH_THREADS"))] * 2)
environment "production"
# With it a phased restart would be an ordinary one.
preload_app!(ENV["BENCH_PRELOAD"] != "no")

ENTRIES = Integer(ENV.fetch("BENCH_TABLE"))
TABLE = Array.new(ENTRIES) { |number| format("%0100d", number) }

POOL = ConnectionPool.new(size: Integer(ENV.fetch("BENCH_THREADS"))) { Redis.new(url: ENV.fetch("BENCH_REDIS")) }

on_worker_boot do
  File.write(ENV.fetch("BENCH_BOOTED"), "booted\n", mode: "a")
end

asked = 0
app do |_env|
  text = POOL.with { |redis| redis.get("key") }
  unless ENTRIES.zero?
    asked += 7919
    text = TABLE[asked % ENTRIES]
  end
  [200, { "Content-Type" => "text/plain" }, [text]]
end
