-- Takes messages from the lists of several queues, each under a lease, in one step.
--
-- ARGV  4 base of the tags   5 seconds of the lease   6 how many at most   7 turn, which rotates the queues
--       8 number of queues   9 number of steps
--       then the queues, what ends their entries in `unacked`, and the steps in the order of reading
--       then for each receive whose reply was lost: its base, and how many it asked for
--
-- Returns  time, time of the next due message or '', {number of queue, number of step, how many, ...}, {envelope, ...}

local base, lease, limit, turn = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local queue_count, step_count = tonumber(ARGV[8]), tonumber(ARGV[9])
local endings = 9 + queue_count
local steps = endings + queue_count
local lost = steps + step_count

local now = time()
if call('EXISTS', PREFIX .. 'celeriac:void:' .. base) == 1 then
  return { text_of(now), '', {}, {} } -- whoever asked has given up, and taken everything back
end

-- Nobody has heard of what a lost reply gave away. It is taken back, and if that receive is still on its way, through
-- a network or a server that was stopped, it will find itself void.
if #ARGV > lost then
  need_no_memory()
end
for i = lost + 1, #ARGV, 2 do
  call('SET', PREFIX .. 'celeriac:void:' .. ARGV[i], '1', 'EX', 86400)
  local found = {}
  for number = 1, tonumber(ARGV[i + 1]) do
    local tag
    for step = 1, step_count do
      local candidate = ARGV[i] .. string.format('.%04d~', number) .. ARGV[steps + step]
      tag = tag or call('ZSCORE', LEASES, candidate) and candidate
    end
    if not tag then
      break
    end
    table.insert(found, tag)
  end
  restore(found, true)
end

local next_due = tend(now)

-- How many each of these queues gives, so that all give the same as far as they have it.
local function shares(lengths, left)
  local open, quotas = {}, {}
  for queue in pairs(lengths) do
    table.insert(open, queue)
    quotas[queue] = 0
  end
  table.sort(open)
  for _ = 1, #open > 0 and turn % #open or 0 do
    table.insert(open, table.remove(open, 1))
  end
  while left > 0 and #open > 0 do
    local share = math.max(1, math.floor(left / #open))
    local still_open = {}
    for _, queue in ipairs(open) do
      local more = math.min(share, left, lengths[queue] - quotas[queue])
      quotas[queue] = quotas[queue] + more
      left = left - more
      if quotas[queue] < lengths[queue] then
        table.insert(still_open, queue)
      end
    end
    open = still_open
  end
  return quotas
end

-- Whether stock workers, who decode what they restore, can decode this. What begins and ends as kombu's and ours do is
-- taken for sound; others are looked at, because a stock worker that cannot decode one entry restores none.
local function is_sound(text, begins_well)
  if begins_well and string.byte(text, -1) == 125 then
    return true
  end
  return string.sub(text, 1, 2) == '{"' and pcall(cjson.decode, text)
end

local groups, taken, count = {}, {}, 0
local tags, held, sound = {}, {}, {}
local FIRST, AGAIN = '[' .. MARK .. '1, ', '[' .. MARK

local function take(queue, step, quota)
  local texts = quota > 0 and call('RPOP', list_of(ARGV[9 + queue], ARGV[steps + step]), quota)
  if not texts then
    return
  end
  table.insert(groups, queue)
  table.insert(groups, step)
  table.insert(groups, #texts)
  local suffix, ending = '~' .. ARGV[steps + step], ARGV[endings + queue]
  for _, text in ipairs(texts) do
    count = count + 1
    taken[count] = text
    tags[count] = base .. string.format('.%04d', count) .. suffix
    held[2 * count - 1] = tags[count]
    if string.sub(text, 1, 10) == '{"body": "' then
      held[2 * count] = FIRST .. string.sub(text, 2) .. ending
      sound[count] = is_sound(text, true)
    else
      local before, rest = parse(text)
      sound[count] = is_sound(text, before)
      held[2 * count] = rest and AGAIN .. ((before or 0) + 1) .. ', ' .. rest .. ending or '[' .. text .. ending
    end
  end
end

local function take_all()
  for step = 1, step_count do
    local left = limit - count
    if left <= 0 then
      break
    end
    if queue_count == 1 then
      take(1, step, left)
    else
      local lengths = {}
      for queue = 1, queue_count do
        local length = call('LLEN', list_of(ARGV[9 + queue], ARGV[steps + step]))
        if length > 0 then
          lengths[queue] = length
        end
      end
      local quotas = shares(lengths, left)
      for queue = 1, queue_count do
        take(queue, step, quotas[queue] or 0)
      end
    end
  end
end

local function in_chunks(command, key, values)
  for first = 1, #values, 2000 do
    call(command, key, unpack(values, first, math.min(first + 1999, #values)))
  end
end

local function lease_all()
  in_chunks('HSET', UNACKED, held)
  -- From the last to the first: a sorted set that is small is a list, and each finds its place at the head of it.
  local ends = text_of(now + lease)
  local leased, indexed = {}, {}
  for number = count, 1, -1 do
    leased[#leased + 1] = ends
    leased[#leased + 1] = tags[number]
    if sound[number] then
      indexed[#indexed + 1] = ends
      indexed[#indexed + 1] = tags[number]
    end
  end
  in_chunks('ZADD', LEASES, leased)
  in_chunks('ZADD', INDEX, indexed)
end

-- A key that is of another type shows only now: what was taken goes back to where it was.
local function give_back()
  for first = 1, count, 1000 do
    local last = math.min(first + 999, count)
    for _, key in ipairs({ INDEX, LEASES }) do
      redis.pcall('ZREM', key, unpack(tags, first, last))
    end
    redis.pcall('HDEL', UNACKED, unpack(tags, first, last))
  end
  local at = count
  for group = #groups - 2, 1, -3 do
    local texts = {}
    for _ = 1, groups[group + 2] do
      table.insert(texts, taken[at])
      at = at - 1
    end
    push('RPUSH', ARGV[9 + groups[group]], ARGV[steps + groups[group + 1]], texts)
  end
end

local ok, problem = pcall(take_all)
if ok and count > 0 then
  ok, problem = pcall(lease_all)
  next_due = earlier(next_due, now + lease)
end
if not ok then
  give_back()
  error(problem, 0)
end
return { text_of(now), text_of(next_due), groups, taken }
