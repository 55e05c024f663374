-- Shared by all scripts; inserted between the shebang and the body of a script. All scripts use the same keys:
-- prompts, rollouts, outstanding, fence. A script checks its arguments and the types of its keys before its
-- first write, because Redis does not roll back the writes of a script that fails.
local PROMPTS, ROLLOUTS, OUTSTANDING, FENCE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local GROUP = 'workers'
-- Owner of entries that were given back; their idle time is long enough for any worker to claim them.
local RETURNED, RETURNED_IDLE_MS = 'returned', 8640000000

local function digits(index, name)
  local value = ARGV[index]
  if not value or not string.match(value, '^%d+$') or #value > 15 then
    error(redis.error_reply('INVALID ' .. name .. ': not a number below 10^15'))
  end
  return value
end

local function entry_id(index)
  local value = ARGV[index]
  if not value or not string.match(value, '^%d+%-%d+$') then
    error(redis.error_reply('INVALID entry id'))
  end
  return value
end

local function payload(index, name)
  local value = ARGV[index]
  if not value or value == '' then
    error(redis.error_reply('INVALID ' .. name .. ': empty'))
  end
  return value
end

local function check_types()
  local wanted = { [PROMPTS] = 'stream', [ROLLOUTS] = 'stream', [OUTSTANDING] = 'hash', [FENCE] = 'string' }
  for key, kind in pairs(wanted) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then
      error(redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. kind))
    end
  end
end

-- The group starts at 0, so that its lag is always known and no entry is skipped if the group was lost.
local function ensure_group()
  local made = redis.pcall('XGROUP', 'CREATE', PROMPTS, GROUP, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    error(made)
  end
end

-- Raise FENCED if another trainer of this or a higher incarnation holds the fence. A lower or lost fence is
-- taken again: Redis may lose it, but the files that claim incarnations persist.
local function check_fence()
  local mine = ARGV[1]
  local my_incarnation = tonumber(string.match(mine or '', '^(%d+):%x+$'))
  if not my_incarnation then
    error(redis.error_reply('INVALID owner of the fence'))
  end
  local held = redis.call('GET', FENCE)
  if held == mine then
    return
  end
  local incarnation = held and tonumber(string.match(held, '^(%d+):')) or 0
  if incarnation >= my_incarnation then
    error(redis.error_reply('FENCED ' .. incarnation))
  end
  redis.call('SET', FENCE, mine)
end

local function stored_sending(task)
  local value = redis.call('HGET', OUTSTANDING, task)
  if not value then
    return nil
  end
  local incarnation, number, failures, entry = string.match(value, '^(%d+):(%d+):(%d+):(%d+%-%d+)$')
  return { incarnation = incarnation, number = number, failures = tonumber(failures or 0), entry = entry }
end

local function store_sending(task, incarnation, number, failures, entry)
  local value = incarnation .. ':' .. number .. ':' .. failures .. ':' .. entry
  redis.call('HSET', OUTSTANDING, task, value)
end

-- Return the explicit failures of a sending if it is open, nil otherwise. The entry ID is compared, too: an old
-- entry that Redis restored, or that outlived the hash, is never mistaken for the open sending.
local function open_failures(task, incarnation, number, entry)
  local open = stored_sending(task)
  if open and open.incarnation == incarnation and open.number == number and open.entry == entry then
    return open.failures
  end
  return nil
end

local function last_delivered()
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', PROMPTS)) do
    local fields = {}
    for i = 1, #group, 2 do
      fields[group[i]] = group[i + 1]
    end
    if fields['name'] == GROUP then
      return fields['last-delivered-id']
    end
  end
  return '0-0'
end

-- Every entry before the oldest pending one was delivered and acknowledged. Trimming from the head keeps the
-- group's lag known; XDEL would not.
local function trim()
  local oldest = redis.call('XPENDING', PROMPTS, GROUP)[2] or last_delivered()
  redis.call('XTRIM', PROMPTS, 'MINID', '=', oldest)
end

local function acknowledge(entry)
  redis.call('XACK', PROMPTS, GROUP, entry)
end

local function close(task, incarnation, number, entry, outcome)
  redis.call('XADD', ROLLOUTS, '*', 'task', task, 'incarnation', incarnation, 'number', number, 'outcome', outcome)
  redis.call('HDEL', OUTSTANDING, task)
  acknowledge(entry)
  trim()
end

-- Return owner and delivery count of a pending entry, or nil.
local function pending_of(entry)
  local found = redis.call('XPENDING', PROMPTS, GROUP, entry, entry, 1)[1]
  if not found then
    return nil
  end
  return { consumer = found[2], deliveries = found[4] }
end

local function give_back(entry, deliveries)
  redis.call('XCLAIM', PROMPTS, GROUP, RETURNED, 0, entry,
    'IDLE', RETURNED_IDLE_MS, 'RETRYCOUNT', deliveries, 'JUSTID')
end
