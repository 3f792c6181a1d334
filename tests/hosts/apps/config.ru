# A web application: /CLIENT/WORD has the client bring that word back from its server. Its connections are made here, which with
# `preload_app!` is before Puma forks.
require "pg"
require "redis"

# A connection, and a new one when its use has failed.
class Postgres
  def initialize = connect
  def connect = @connection = PG.connect(ENV.fetch("POSTGRES"))

  def first(query, *arguments)
    @connection.exec_params(query, arguments).getvalue(0, 0)
  rescue PG::UnableToSend, PG::ConnectionBad
    @connection = nil
    raise
  end

  def ask(word)
    connect unless @connection
    first("select $1::text from pg_sleep(0.001)", word)
  end

  def session = first("select pg_backend_pid()")
end

# With `inherit_socket` it does not look for forks.
class RedisClient
  def initialize(**options) = @client = Redis.new(url: ENV.fetch("REDIS"), **options)
  def ask(word) = @client.echo(word)
  def session = @client.call(["CLIENT", "ID"])
end

KINDS = {
  "ruby_pg" => -> { Postgres.new },
  "ruby_redis" => -> { RedisClient.new },
  "ruby_redis_inherit_socket" => -> { RedisClient.new(inherit_socket: true) },
}
CLIENTS = ENV.fetch("CLIENTS").split.to_h { |name| [name, KINDS.fetch(name).call] }

# All at once: whoever finds the file finds it whole.
def note_sessions(time)
  folder = ENV.fetch("SESSIONS")
  lines = CLIENTS.map do |name, client|
    "#{name} #{client.session}\n"
  rescue StandardError => error
    "#{name} lost: #{error.class}\n"
  end
  File.write("#{folder}/writing", lines.join)
  File.rename("#{folder}/writing", "#{folder}/#{time}")
end

note_sessions("before")
parent = Process.pid
at_exit { note_sessions("after") if Process.pid == parent }

run(lambda do |environment|
  _, client, word = environment["PATH_INFO"].split("/")
  answer =
    begin
      "answer #{CLIENTS.fetch(client).ask(word)}"
    rescue StandardError => error
      "error #{error.class}: #{error.message.split.join(' ')}"
    end
  [200, { "Content-Type" => "text/plain" }, ["#{Process.pid} #{answer}"]]
end)
