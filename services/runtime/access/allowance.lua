-- Counts requests and tokens against the limits of a key, all or nothing, by the server's clock.
-- Same arithmetic as `_Account.take` in allowance.py, which documents it.
--
-- KEYS[1]: hash of the key's account. ARGV: requests, tokens, requests per second, tokens per second, capacity
-- of the token bucket, tokens per day (0: no limit), 1 to take them even beyond the limits.
-- Returns {'' or the limit that refuses, seconds to wait, levels of the buckets of requests and tokens, tokens
-- used today}.
local requests, tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
local request_rate, token_rate = tonumber(ARGV[3]), tonumber(ARGV[4])
local token_capacity, quota = tonumber(ARGV[5]), tonumber(ARGV[6])
local force = ARGV[7] == '1'
local request_capacity = math.max(1, request_rate)

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local today = math.floor(now / 86400)

local kept = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at', 'day', 'used')
local request_level = tonumber(kept[1] or request_capacity)
local token_level = tonumber(kept[2] or token_capacity)
local elapsed = math.max(0, now - tonumber(kept[3] or now))
local used = tonumber(kept[4] or today) == today and tonumber(kept[5] or 0) or 0

request_level = math.min(request_capacity, request_level + elapsed * request_rate)
token_level = math.min(token_capacity, token_level + elapsed * token_rate)

local function reply(limit, wait)
  return {
    limit, tostring(wait),
    string.format('%.17g', request_level), string.format('%.17g', token_level), string.format('%.17g', used)
  }
end

if not force then
  local short = math.min(requests, request_capacity) - request_level
  if request_rate > 0 and short > 1e-6 then
    return reply('requests', short / request_rate)
  end
  short = math.min(tokens, token_capacity) - token_level
  if token_rate > 0 and short > 1e-6 then
    return reply('tokens', short / token_rate)
  end
  if quota > 0 and (used >= quota or used + tokens > quota) then
    return reply('quota', (today + 1) * 86400 - now)
  end
end

if request_rate > 0 then request_level = request_level - requests end
if token_rate > 0 then token_level = token_level - tokens end
used = used + tokens
redis.call('HSET', KEYS[1],
  'requests', string.format('%.17g', request_level),
  'tokens', string.format('%.17g', token_level),
  'at', string.format('%.6f', now),
  'day', string.format('%d', today),
  'used', string.format('%.17g', used))
redis.call('EXPIRE', KEYS[1], 172800)
return reply('', 0)
