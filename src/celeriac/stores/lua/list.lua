-- A slice of a list of records, newest first: as many as match among the next few of the smallest index.
--
-- ARGV[2]: the number below which to begin, '' for the newest; ARGV[3]: how many to find at most; ARGV[4]: how many to
-- look at at most; ARGV[5] to ARGV[8]: state, name, queue, owner, each as '=value' or ''; ARGV[9] and ARGV[10]: since
-- and until (microseconds) or ''; then texts of which one must occur, in small letters.
-- Gives the number to go on below, or false at the end; then the records as get.lua does, each with its id in front.

local before, wanted, budget = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local since, limit = tonumber(ARGV[9]), tonumber(ARGV[10])

-- Bytes of arguments in which a search looks before it lets others have their turn.
local MOST_BYTES = 2000000

local CHUNK = 100

local equal = {}
local key, size = INDEX, nil
for position, filter in ipairs({ { STATE, ':state:' }, { NAME, ':name:' }, { QUEUE, ':queue:' }, { OWNER, ':owner:' } }) do
  local given = ARGV[4 + position]
  if given ~= '' then
    local value = string.sub(given, 2)
    local members = call('ZCARD', INDEX .. filter[2] .. value)
    equal[filter[1]] = value
    if not size or members < size then
      key, size = INDEX .. filter[2] .. value, members
    end
  end
end

-- A number is never below the time of enqueueing, and never further ahead of it than the lead.
local top = before ~= '' and '(' .. before or '+inf'
if limit then
  local lead = tonumber(call('HGET', NUMBERS, 'lead')) or 0
  if before == '' or limit + lead < tonumber(before) then
    top = string.format('%.0f', limit + lead)
  end
end
local bottom = since and string.format('%.0f', since) or '-inf'

local bytes = 0

local function has_needle(row, id)
  if #ARGV < 11 then
    return true
  end
  for _, text in ipairs({ id, row[NAME] or '', row[ARGS] or '', row[KWARGS] or '' }) do
    bytes = bytes + #text
    local lowered = string.lower(text)
    for index = 11, #ARGV do
      if string.find(lowered, ARGV[index], 1, true) then
        return true
      end
    end
  end
  return false
end

local function matches(row, id)
  for field, value in pairs(equal) do
    if row[field] ~= value then
      return false
    end
  end
  if since or limit then
    local enqueued = tonumber(row[ENQUEUED])
    if not enqueued or (since and enqueued < since) or (limit and enqueued >= limit) then
      return false
    end
  end
  return has_needle(row, id)
end

local answer = { false }
local looked, ended = 0, false
while not ended and #answer <= wanted and looked < budget and bytes < MOST_BYTES do
  local members = call('ZREVRANGEBYSCORE', key, top, bottom, 'WITHSCORES', 'LIMIT', 0, CHUNK)
  ended = #members < 2 * CHUNK
  for index = 1, #members, 2 do
    if #answer > wanted or bytes >= MOST_BYTES then
      ended = false
      break
    end
    local id = members[index]
    top = '(' .. members[index + 1]
    looked = looked + 1
    local row = call('HMGET', TASK .. id, unpack(FIELDS))
    if not row[STATE] then
      call('ZREM', key, id)
    elseif matches(row, id) then
      local text = call('GET', META .. id)
      if text or not READY[row[STATE]] then
        row[#FIELDS + 1] = text
        answer[#answer + 1] = { id, row }
      end
    end
  end
end
if not ended then
  answer[1] = string.sub(top, 2)
end
return answer
