-- Counts one tenant's requests, tokens and rows in Redis; `script.py` says how it is called.
-- KEYS: a hash with the meters, a sorted set with the rows in use. ARGV: see `Call.arguments`.

local meters, leases = KEYS[1], KEYS[2]
local nonce, mode, lease = ARGV[1], ARGV[2], ARGV[3]
local lifetime, rows = tonumber(ARGV[4]), tonumber(ARGV[5])
local requests, tokens = tonumber(ARGV[6]), tonumber(ARGV[7])
local max_requests, max_tokens, max_rows = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

local function discard_unless(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end
discard_unless(meters, 'hash')
discard_unless(leases, 'zset')

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local kept = redis.call('HMGET', meters, 'requests', 'tokens', 'at')
local elapsed = math.max(0, now - (tonumber(kept[3]) or now))

-- a limit of 0 stands for none
local function run_down(text, limit)
  return math.max(0, math.min(limit, tonumber(text) or 0) - elapsed * limit / 60)
end
local function fits(wanted, limit)
  return limit == 0 or wanted <= limit + 1e-6
end
local function within(used, limit)
  return math.min(math.max(0, used), limit)
end
local used_requests = run_down(kept[1], max_requests)
local used_tokens = run_down(kept[2], max_tokens)

redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
-- a lease of the far future was written before the clock leapt back
redis.call('ZREMRANGEBYSCORE', leases, now + 2 * lifetime, '+inf')

local function hold()
  for row = 1, rows do
    redis.call('ZADD', leases, now + lifetime, lease .. ':' .. row)
  end
end

local granted = 1
if mode == 'take' then
  local fit = fits(used_requests + requests, max_requests)
    and fits(used_tokens + tokens, max_tokens)
    and fits(redis.call('ZCARD', leases) + rows, max_rows)
  if fit then
    used_requests = within(used_requests + requests, max_requests)
    used_tokens = within(used_tokens + tokens, max_tokens)
    hold()
  else
    granted = 0
  end
elseif mode == 'give' then
  local found = 0
  for row = 1, rows do
    found = found + redis.call('ZREM', leases, lease .. ':' .. row)
  end
  if found > 0 then
    used_requests = within(used_requests - requests, max_requests)
    used_tokens = within(used_tokens - tokens, max_tokens)
  end
else
  hold()
end

local function exact(number)
  return string.format('%.17g', number)
end
redis.call('HSET', meters, 'requests', exact(used_requests), 'tokens', exact(used_tokens),
  'at', exact(now))
redis.call('EXPIRE', meters, 120)
redis.call('PEXPIRE', leases, math.ceil(2000 * lifetime))
local held = redis.call('ZCARD', leases)
return table.concat({nonce, granted, exact(used_requests), exact(used_tokens), held}, ' ')
