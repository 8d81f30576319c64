-- What every script of the broker begins with: the layout of the keys, and what can happen to a message.
--
-- KEYS  1  `unacked`, a hash of kombu's: tag -> [<envelope>, "", "<queue>"], everything that is leased
--       2  `unacked_index`, a sorted set of kombu's: tag -> when a stock worker took it, or when our lease ends; stock
--          workers restore what is older than their visibility timeout, so never what is leased
--       3  `celeriac:leases`, a sorted set: tag -> when the lease ends
--       4  `celeriac:delayed`, a sorted set: queue -> when its first delayed message is due
-- ARGV  1  prefix of all keys
--       2  what stands between queue and step in the name of a list
--       3  channel on which sleeping consumers hear of what they cannot block on; the message is the queue
--       Arguments of a script's own begin at 4.
--
-- Further keys, behind the prefix:
--       <queue>, <queue><separator><step>   lists, as kombu's: in on the left, out on the right
--       celeriac:delayed:<queue>            sorted set: <sequence><step>:<envelope> -> due
--       celeriac:sequence                   number of the last delayed message
--       celeriac:void:<base>                a receive that must not happen any more
--       celeriac:dead, celeriac:dead-order, celeriac:dead-sequence, celeriac:dead:<queue>   dead letters
--
-- Tags are <base>.<number>~<step>. Times are Redis' own, in seconds since the epoch.
--
-- Envelopes stay texts: cjson would make objects of empty arrays, and blur large integers. The number of deliveries
-- is written in front of their other keys, {"celeriac-deliveries": N, ..., because stock workers, too, keep it there
-- when they restore a message.

local UNACKED, INDEX, LEASES, DELAYED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local PREFIX, SEPARATOR, WAKE = ARGV[1], ARGV[2], ARGV[3]

local MARK = '{"celeriac-deliveries": '
local BATCH = 256 -- messages moved or restored by one script, so that nobody waits for long
local LATER = 60 -- seconds until what cannot be put into its list, because the key is no list, is tried again

local call = redis.call

local function time()
  local t = call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- Lets a script go on while the server is out of memory, if all it does is to move what is there: Redis looks before
-- the first write that may need memory, and no more after one that needs none. Else only what frees memory would wait.
local function need_no_memory()
  call('ZREM', LEASES, '')
end

local function list_of(queue, step)
  if step == '0' then
    return PREFIX .. queue
  end
  return PREFIX .. queue .. SEPARATOR .. step
end

local function step_of(tag)
  return string.match(tag, '~(%d+)$') or '0'
end

-- The delivery count of an envelope, nil if it has none yet, and what follows the opening brace.
-- An envelope that is no object has neither: nothing can be written into it.
local function parse(text)
  if string.sub(text, 1, #MARK) == MARK then
    local count, rest = string.match(text, '^(%d+), (.*)$', #MARK + 1)
    if count then
      return tonumber(count), rest
    end
  elseif string.sub(text, 1, 2) == '{"' then
    return nil, string.sub(text, 2)
  end
  return nil, nil
end

local function with_count(text, count)
  local _, rest = parse(text)
  if rest then
    return MARK .. count .. ', ' .. rest
  end
  return text
end

-- The envelope as it was before its last delivery.
local function uncounted(text)
  local count, rest = parse(text)
  if count and count > 1 then
    return MARK .. (count - 1) .. ', ' .. rest
  elseif count then
    return '{' .. rest
  end
  return text
end

-- Envelope and queue from an entry of `unacked` that is ours. Inside a JSON string, no quote follows a space.
local function split(held)
  local text, name = string.match(held, '^%[(.*), "", "(.-)"%]$')
  if text and string.find(name, '\\', 1, true) then
    name = cjson.decode('["' .. name .. '"]')[1]
  end
  return text, name
end

-- Wakes those who can only be told. A user who may not publish has consumers that look by themselves.
local function wake(queue)
  redis.pcall('PUBLISH', WAKE, queue)
end

-- Puts envelopes at the end (LPUSH) or at the front (RPUSH) of a queue.
local function push(side, queue, step, texts)
  local list, length = list_of(queue, step), 0
  for first = 1, #texts, 1000 do
    length = call(side, list, unpack(texts, first, math.min(first + 999, #texts)))
  end
  if step ~= '0' and length == #texts then
    wake(queue)
  end
end

-- Keeps an envelope until it is due. One that was delayed here once is not delayed again for the eta in its headers,
-- which its count tells.
local function delay(queue, step, due, text)
  if not parse(text) then
    text = with_count(text, 0)
  end
  local number = call('INCR', PREFIX .. 'celeriac:sequence')
  local member = string.format('%016.0f', number) .. step .. ':' .. text
  call('ZADD', PREFIX .. 'celeriac:delayed:' .. queue, due, member)
  if call('ZADD', DELAYED, 'LT', 'CH', due, queue) == 1 then
    wake(queue)
  end
end

local function publish(queue, step, due, text)
  if due == '' then
    push('LPUSH', queue, step, { text })
  else
    delay(queue, step, due, text)
  end
end

local function release(tags)
  for first = 1, #tags, 1000 do
    local last = math.min(first + 999, #tags)
    call('ZREM', INDEX, unpack(tags, first, last))
    call('ZREM', LEASES, unpack(tags, first, last))
    call('HDEL', UNACKED, unpack(tags, first, last))
  end
end

-- Puts leased messages back to the front of their queues, the first of them foremost. Those whose list is none stay
-- leased for a while, and are nobody else's trouble.
local function restore(tags, as_if_not_delivered)
  local done = {}
  for i = #tags, 1, -1 do
    local held = call('HGET', UNACKED, tags[i])
    local text, queue
    if held then
      text, queue = split(held)
    end
    if text then
      if as_if_not_delivered then
        text = uncounted(text)
      end
    end
    if not text or pcall(push, 'RPUSH', queue, step_of(tags[i]), { text }) then
      table.insert(done, tags[i])
    else
      call('ZADD', LEASES, 'XX', time() + LATER, tags[i])
      call('ZADD', INDEX, 'XX', time() + LATER, tags[i])
    end
  end
  release(done)
end

-- Moves messages of a queue that are due into their lists, the earliest first. Returns how many. Those whose list is
-- none stay.
local function move_due(queue, now, limit)
  local waiting = PREFIX .. 'celeriac:delayed:' .. queue
  local members = call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, limit)
  local by_step, stuck = {}, false
  for _, member in ipairs(members) do
    local step, at = string.match(member, '^(%d+):()', 17)
    by_step[step] = by_step[step] or { members = {}, texts = {} }
    table.insert(by_step[step].members, member)
    table.insert(by_step[step].texts, string.sub(member, at))
  end
  for step, due in pairs(by_step) do
    if pcall(push, 'LPUSH', queue, step, due.texts) then
      call('ZREM', waiting, unpack(due.members))
    else
      stuck = true
    end
  end
  local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if stuck then
    call('ZADD', DELAYED, now + LATER, queue)
  elseif first[2] then
    call('ZADD', DELAYED, first[2], queue)
  else
    call('ZREM', DELAYED, queue)
  end
  return #members
end

local function first_of(sorted)
  return tonumber(call('ZRANGE', sorted, 0, 0, 'WITHSCORES')[2])
end

local function earlier(one, other)
  return one and other and math.min(one, other) or one or other
end

-- Does what has become due in any queue. Returns when the next is, nil if nothing will.
local function tend(now)
  local due, ends = first_of(DELAYED), first_of(LEASES)
  if due and due <= now or ends and ends <= now then
    need_no_memory()
  end
  if due and due <= now then
    local left = BATCH
    for _, queue in ipairs(call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, BATCH)) do
      left = left - move_due(queue, now, left)
      if left <= 0 then
        break
      end
    end
    due = first_of(DELAYED)
  end
  if ends and ends <= now then
    restore(call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, BATCH))
    ends = first_of(LEASES)
  end
  return earlier(due, ends)
end

local function text_of(seconds)
  return seconds and string.format('%.6f', seconds) or ''
end
